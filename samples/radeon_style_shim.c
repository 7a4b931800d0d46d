// SPDX-License-Identifier: GPL-2.0
/*
 * The static inlines that style.rs and what it uses need, and what Rust can't do:
 * a counter that is C's atomic.
 */
#include <linux/capability.h>
#include <linux/cred.h>
#include <linux/sched/signal.h>
#include <linux/sched/user.h>

#define SIZE_LIMIT_MB pagekit_radeon_size_limit_mb
#include "style_shim.h"

/*
 * Pinned pages are locked memory of the user. NULL if they are more than the limit of
 * the process allows.
 */
struct user_struct *pagekit_radeon_account(unsigned long pages);
struct user_struct *pagekit_radeon_account(unsigned long pages)
{
	struct user_struct *user = current_user();
	unsigned long limit = rlimit(RLIMIT_MEMLOCK) >> PAGE_SHIFT;
	long locked = atomic_long_read(&user->locked_vm);

	/* What is refused is not counted for a moment either: others would be, too. */
	do {
		if (locked + pages > limit && !capable(CAP_IPC_LOCK))
			return NULL;
	} while (!atomic_long_try_cmpxchg(&user->locked_vm, &locked, locked + pages));
	return get_uid(user);
}

void pagekit_radeon_unaccount(struct user_struct *user, unsigned long pages);
void pagekit_radeon_unaccount(struct user_struct *user, unsigned long pages)
{
	atomic_long_sub(pages, &user->locked_vm);
	free_uid(user);
}
