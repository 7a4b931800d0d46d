/* SPDX-License-Identifier: GPL-2.0 */
/* For drivers whose device has a name that whoever loads them chooses. */
#include <linux/err.h>
#include <linux/namei.h>
#include <linux/path.h>
#include <linux/slab.h>

/*
 * Whether sysfs shows a device of that class and name. The driver core refuses a second one, too,
 * but with a stack trace. It still does where sysfs is not at /sys, or another driver is quicker.
 */
static inline bool name_is_taken(const char *class, const char *name)
{
	char *place = kasprintf(GFP_KERNEL_ACCOUNT, "/sys/class/%s/%s", class, name);
	bool taken = false;
	struct path path;

	if (place && !kern_path(place, 0, &path)) {
		path_put(&path);
		taken = true;
	}
	kfree(place);
	return taken;
}
