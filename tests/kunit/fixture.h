/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Static inlines for the fixture in fixture.rs. Each test module has a copy.
 */
#include <kunit/test.h>
#include <kunit/test-bug.h>
#include <linux/anon_inodes.h>
#include <linux/cred.h>
#include <linux/device/faux.h>
#include <linux/dma-mapping.h>
#include <linux/falloc.h>
#include <linux/file.h>
#include <linux/highmem.h>
#include <linux/hugetlb.h>
#include <linux/kthread.h>
#include <linux/mempolicy.h>
#include <linux/mm.h>
#include <linux/mount.h>
#include <linux/namei.h>
#include <linux/oom.h>
#include <linux/pagemap.h>
#include <linux/sched/signal.h>
#include <linux/set_memory.h>
#include <linux/sched/task.h>
#include <linux/shmem_fs.h>
#include <linux/shrinker.h>
#include <linux/swap.h>
#include <linux/vmstat.h>

#include "../../src/shim.h"
#include "../drivers/compat.h"

/* Ends the test, for which this machine lacks something. Destructors don't run. */
void fixture_skip(const char *why);
__weak void fixture_skip(const char *why)
{
	kunit_skip(kunit_get_current_test(), "%s", why);
}

/* The VMA at addr takes large folios, as after MADV_HUGEPAGE. */
int fixture_advise_huge(unsigned long addr);
__weak int fixture_advise_huge(unsigned long addr)
{
	struct vm_area_struct *vma;

	mmap_write_lock(current->mm);
	vma = vma_lookup(current->mm, addr);
	if (vma)
		vm_flags_set(vma, VM_HUGEPAGE);
	mmap_write_unlock(current->mm);
	return vma ? 0 : -EFAULT;
}

/* What maps addr, or leads to it. Nobody changes the page tables meanwhile. */
static inline pmd_t fixture_pmd(unsigned long addr)
{
	pgd_t *pgd = pgd_offset(current->mm, addr);
	p4d_t *p4d;
	pud_t *pud;

	if (pgd_none(*pgd))
		return __pmd(0);
	p4d = p4d_offset(pgd, addr);
	if (p4d_none(*p4d))
		return __pmd(0);
	pud = pud_offset(p4d, addr);
	return pud_none(*pud) ? __pmd(0) : *pmd_offset(pud, addr);
}

/* The cache mode that addr is mapped with. Of nothing there is one, too: look first. */
unsigned long fixture_cache_mode(unsigned long addr);
__weak unsigned long fixture_cache_mode(unsigned long addr)
{
	pmd_t pmd = fixture_pmd(addr);
	bool huge = pmd_leaf(pmd);
	pgprot_t prot = huge ? pmd_pgprot(pmd) : pte_pgprot(*pte_offset_kernel(&pmd, addr));

#if defined(CONFIG_X86)
	return pgprot_val(huge ? pgprot_large_2_4k(prot) : prot) & _PAGE_CACHE_MASK;
#elif defined(CONFIG_ARM64)
	return pgprot_val(prot) & PTE_ATTRINDX_MASK;
#elif defined(CONFIG_RISCV)
	return pgprot_val(prot) & _PAGE_MTMASK;
#else
	return 0;
#endif
}

/* Memory that the kernel itself has mapped for write-combining, or as always. */
int fixture_set_wc(struct page **pages, int n, bool wc);
__weak int fixture_set_wc(struct page **pages, int n, bool wc)
{
#ifdef CONFIG_X86
	return wc ? set_pages_array_wc(pages, n) : set_pages_array_wb(pages, n);
#else
	return 0;
#endif
}

/* Has the memory of a page what was written to the page: for a device that doesn't snoop. */
int fixture_clean(struct page *const *pages, unsigned long n);
__weak int fixture_clean(struct page *const *pages, unsigned long n)
{
	struct faux_device *faux = faux_device_create("pagekit-kunit", NULL, NULL);
	int ret = -ENODEV;

	if (!faux)
		return ret;
	ret = dma_coerce_mask_and_coherent(&faux->dev, DMA_BIT_MASK(64));
	for (unsigned long i = 0; i < n && !ret; i++) {
		dma_addr_t addr = dma_map_page(&faux->dev, pages[i], 0, PAGE_SIZE, DMA_TO_DEVICE);

		ret = dma_mapping_error(&faux->dev, addr);
		if (!ret)
			dma_unmap_page(&faux->dev, addr, PAGE_SIZE, DMA_TO_DEVICE);
	}
	faux_device_destroy(faux);
	return ret;
}

/* A shmem file on a file system with these mount options, or on the kernel's own. */
struct file *fixture_shmem(loff_t size, char *options);
__weak struct file *fixture_shmem(loff_t size, char *options)
{
	const vma_flags_t flags = mk_vma_flags(VMA_NORESERVE_BIT);
	struct vfsmount *mnt;
	struct file *file;

	if (!options)
		return shmem_file_setup("pagekit-kunit", size, flags);
	mnt = vfs_kern_mount(get_fs_type("tmpfs"), SB_KERNMOUNT, "tmpfs", options);
	if (IS_ERR(mnt))
		return ERR_CAST(mnt);
	file = shmem_file_setup_with_mnt(mnt, "pagekit-kunit", size, flags);
	mntput(mnt);
	return file;
}

struct file *fixture_hugetlb(loff_t size);
__weak struct file *fixture_hugetlb(loff_t size)
{
	struct vfsmount *mnt;
	struct path root;
	struct file *file;

	/* What kernel threads have closed still has its huge pages. */
	flush_delayed_fput();
	mnt = vfs_kern_mount(get_fs_type("hugetlbfs"), SB_KERNMOUNT, "hugetlbfs", NULL);
	if (IS_ERR(mnt))
		return ERR_CAST(mnt);
	root = (struct path){ .mnt = mnt, .dentry = mnt->mnt_root };
	file = kernel_tmpfile_open(&nop_mnt_idmap, &root, 0600, O_RDWR, current_cred());
	if (!IS_ERR(file))
		i_size_write(file_inode(file), size);
	mntput(mnt);
	return file;
}

/* A disk that nobody uses. Kernel threads don't see the files of user space by themselves. */
struct file *fixture_disk(void);
__weak struct file *fixture_disk(void)
{
	scoped_with_init_fs()
		return filp_open("/dev/zram1", O_RDWR, 0);
	unreachable();
}

/* As reclaim: a page that nobody maps is written to swap if it is dirty, and dropped if not. */
void fixture_reclaim(struct file *file, pgoff_t index);
__weak void fixture_reclaim(struct file *file, pgoff_t index)
{
	struct folio *folio = filemap_lock_folio(file->f_mapping, index);

	if (IS_ERR(folio))
		return;
	/* Writing unlocks. */
	if (!folio_clear_dirty_for_io(folio) ||
	    shmem_write_folio(folio) == AOP_WRITEPAGE_ACTIVATE)
		folio_unlock(folio);
	folio_put(folio);
	invalidate_mapping_pages(file->f_mapping, index, index);
}

/* A thread that takes all pages out of a file and allocates new ones, with what was there. */
static int fixture_churn_thread(void *data)
{
	struct file *file = data;
	loff_t size = i_size_read(file_inode(file));

	while (!kthread_should_stop()) {
		vfs_fallocate(file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, size);
		vfs_fallocate(file, 0, 0, size);
		for (pgoff_t i = 0; i < size >> PAGE_SHIFT; i++) {
			struct folio *folio = filemap_lock_folio(file->f_mapping, i);

			if (IS_ERR(folio))
				continue;
			if (!folio_test_uptodate(folio))
				memset(folio_address(folio), 0x5a, folio_size(folio));
			folio_unlock(folio);
			folio_put(folio);
		}
		cond_resched();
	}
	return 0;
}

/* A thread that pins all pages of a file and lets go of them, over and over, once it is told. */
struct fixture_rival {
	struct file *file;
	bool ready, go;
};

static int fixture_rival_thread(void *data)
{
	struct fixture_rival *rival = data;
	loff_t size = i_size_read(file_inode(rival->file));
	unsigned int max = size >> PAGE_SHIFT;
	struct folio **folios = kvmalloc_array(max, sizeof(*folios), GFP_KERNEL);
	pgoff_t offset;
	long n = 0;

	/* What was allocated is there: pairs with fixture_rival(). */
	smp_store_release(&rival->ready, true);
	/* The same. */
	while (!smp_load_acquire(&rival->go))
		cpu_relax();
	while (!kthread_should_stop()) {
		if (folios)
			n = memfd_pin_folios(rival->file, 0, size - 1, folios, max, &offset);
		if (n > 0)
			unpin_folios(folios, n);
		cond_resched();
	}
	kvfree(folios);
	return 0;
}

/* Starts it. Both pin for the first time from here on. */
struct task_struct *fixture_rival(struct fixture_rival *rival);
__weak struct task_struct *fixture_rival(struct fixture_rival *rival)
{
	struct task_struct *thread = kthread_create(fixture_rival_thread, rival, "pagekit-rival");

	if (!IS_ERR(thread)) {
		/* On another CPU than the test, if there is one. */
		kthread_bind(thread, cpumask_next_wrap(raw_smp_processor_id(), cpu_online_mask));
		wake_up_process(thread);
		/* Pairs with the thread. */
		while (!smp_load_acquire(&rival->ready))
			cond_resched();
		/* The same. */
		smp_store_release(&rival->go, true);
	}
	return thread;
}

/* The memory of a page has an error, or has none after all. */
void fixture_poison(struct page *page, bool bad);
__weak void fixture_poison(struct page *page, bool bad)
{
	struct folio *folio = page_folio(page);
	/* hugetlb says it of the first page instead. */
	bool large = folio_test_large(folio) && !folio_test_hugetlb(folio);

	if (bad) {
		SetPageHWPoison(page);
		if (large)
			folio_set_has_hwpoisoned(folio);
	} else {
		ClearPageHWPoison(page);
		if (large)
			folio_clear_has_hwpoisoned(folio);
	}
}

/* This thread, which takes no signals otherwise, was killed, or was not after all. */
void fixture_kill(bool kill);
__weak void fixture_kill(bool kill)
{
	if (kill) {
		allow_signal(SIGKILL);
		send_sig(SIGKILL, current, 1);
	} else {
		flush_signals(current);
		disallow_signal(SIGKILL);
	}
}

struct fixture_deadline {
	struct timer_list timer;
	struct task_struct *task;
};

static void fixture_expire(struct timer_list *timer)
{
	struct fixture_deadline *deadline = timer_container_of(deadline, timer, timer);

	send_sig(SIGKILL, deadline->task, 1);
}

/* Pins the page at an address for long. If that does not end by itself, this thread is killed. */
int fixture_pin_for_long(unsigned long addr);
__weak int fixture_pin_for_long(unsigned long addr)
{
	struct fixture_deadline deadline = { .task = current };
	struct page *page;
	int pinned;

	allow_signal(SIGKILL);
	timer_setup_on_stack(&deadline.timer, fixture_expire, 0);
	mod_timer(&deadline.timer, jiffies + HZ / 4);
	pinned = pin_user_pages_fast(addr, 1, FOLL_WRITE | FOLL_LONGTERM, &page);
	timer_delete_sync(&deadline.timer);
	timer_destroy_on_stack(&deadline.timer);
	fixture_kill(false);
	if (pinned == 1)
		unpin_user_page(page);
	return pinned;
}

/* New pages sit in a batch of this CPU, with a reference, until they go to the LRU lists: now. */
void fixture_drain(void);
__weak void fixture_drain(void)
{
	struct folio_batch none;

	folio_batch_init(&none);
	__folio_batch_release(&none);
}

#ifdef CONFIG_NUMA
/*
 * This thread has a memory policy of its own, which goes by turns and counts them, or has none
 * after all. Returns for how many allocations it was asked where.
 */
unsigned int fixture_set_policy(bool own);
__weak unsigned int fixture_set_policy(bool own)
{
	static struct mempolicy policy = {
		.refcnt = ATOMIC_INIT(1),
		.mode = MPOL_WEIGHTED_INTERLEAVE,
		.home_node = NUMA_NO_NODE,
	};
	unsigned int asked = U8_MAX - current->il_weight;

	if (own) {
		policy.nodes = nodemask_of_node(numa_mem_id());
		current->il_prev = numa_mem_id();
		current->il_weight = U8_MAX;
	}
	task_lock(current);
	current->mempolicy = own ? &policy : NULL;
	task_unlock(current);
	return asked;
}
#endif

/* Memory that a test has taken, in blocks, and what the kernel did to get more. */
struct fixture_hoard {
	struct notifier_block oom;
	struct list_head blocks;
	struct shrinker *shrinker;
	struct task_struct *task;
	/* How often somebody was to be killed, and how often the test's own thread reclaimed. */
	unsigned int kills, reclaims;
};

static void fixture_free_hoard(struct fixture_hoard *hoard)
{
	struct page *page, *next;

	list_for_each_entry_safe(page, next, &hoard->blocks, lru)
		__free_pages(page, page_private(page));
	INIT_LIST_HEAD(&hoard->blocks);
}

/* Instead, the memory goes back. */
static int fixture_oom(struct notifier_block *oom, unsigned long unused, void *freed)
{
	struct fixture_hoard *hoard = container_of(oom, struct fixture_hoard, oom);

	hoard->kills++;
	fixture_free_hoard(hoard);
	*(unsigned long *)freed = 1;
	return NOTIFY_OK;
}

static unsigned long fixture_count(struct shrinker *shrinker, struct shrink_control *sc)
{
	struct fixture_hoard *hoard = shrinker->private_data;

	hoard->reclaims += current == hoard->task;
	return SHRINK_EMPTY;
}

static unsigned long fixture_scan(struct shrinker *shrinker, struct shrink_control *sc)
{
	return SHRINK_STOP;
}

/*
 * Takes all memory that is free, but for what is movable, or kept for bad times, and 1024
 * pages, for arrays of pages and the like. Larger blocks may be of the size of a huge page: each
 * CPU keeps some of these when they are freed, where another doesn't find them.
 */
struct fixture_hoard *fixture_take_memory(void);
__weak struct fixture_hoard *fixture_take_memory(void)
{
	const gfp_t gfp = (GFP_USER & ~__GFP_RECLAIM) | __GFP_NORETRY | __GFP_NOWARN;
	struct fixture_hoard *hoard = kzalloc_obj(*hoard);
	int order = ilog2(1024);

	if (!hoard)
		return NULL;
	hoard->shrinker = shrinker_alloc(0, "pagekit-kunit");
	if (!hoard->shrinker) {
		kfree(hoard);
		return NULL;
	}
	hoard->task = current;
	hoard->shrinker->count_objects = fixture_count;
	hoard->shrinker->scan_objects = fixture_scan;
	hoard->shrinker->private_data = hoard;
	shrinker_register(hoard->shrinker);
	INIT_LIST_HEAD(&hoard->blocks);
	hoard->oom.notifier_call = fixture_oom;
	register_oom_notifier(&hoard->oom);
	while (order >= 0) {
		struct page *page = alloc_pages(gfp, order);

		if (page) {
			set_page_private(page, order);
			list_add(&page->lru, &hoard->blocks);
		} else {
			order--;
		}
	}
	if (!list_empty(&hoard->blocks)) {
		struct page *first = list_last_entry(&hoard->blocks, struct page, lru);

		list_del(&first->lru);
		__free_pages(first, page_private(first));
	}
	return hoard;
}

/* Gives it back, if that was not done already lest somebody be killed. */
void fixture_give_memory(struct fixture_hoard *hoard, unsigned int *kills, unsigned int *reclaims);
__weak void fixture_give_memory(struct fixture_hoard *hoard, unsigned int *kills,
				unsigned int *reclaims)
{
	unregister_oom_notifier(&hoard->oom);
	shrinker_free(hoard->shrinker);
	fixture_free_hoard(hoard);
	*kills = hoard->kills;
	*reclaims = hoard->reclaims;
	kfree(hoard);
}

SHIM(void, fixture_keep, (struct file *file), mapping_set_unevictable(file->f_mapping))
SHIM(bool, fixture_has_swap, (void), get_nr_swap_pages() > 0)
SHIM(bool, fixture_has_movable, (void),
     managed_zone(&NODE_DATA(numa_mem_id())->node_zones[ZONE_MOVABLE]))
SHIM(struct task_struct *, fixture_churn, (struct file *file),
     kthread_run(fixture_churn_thread, file, "pagekit-kunit"))
SHIM(void, fixture_set_movable, (struct file *file, bool movable),
     mapping_set_gfp_mask(file->f_mapping, movable ? GFP_HIGHUSER_MOVABLE : GFP_USER))
SHIM(bool, fixture_movable, (struct page *page), is_zone_movable_page(page))
SHIM(struct page *, fixture_movable_page, (void), alloc_page(GFP_HIGHUSER_MOVABLE | __GFP_ZERO))
SHIM(unsigned long, fixture_free_pages, (void), nr_free_pages())
SHIM(pgoff_t, fixture_index, (struct page *page), page_folio(page)->index)
SHIM(int, fixture_refs, (struct page *page), folio_ref_count(page_folio(page)))
SHIM(bool, fixture_maybe_pinned, (struct page *page), folio_maybe_dma_pinned(page_folio(page)))
SHIM(int, fixture_pincount, (struct page *page),
     folio_has_pincount(page_folio(page)) ? atomic_read(&page_folio(page)->_pincount) : 0)
SHIM(void, fixture_add_refs, (struct page *page, int refs), folio_ref_add(page_folio(page), refs))
SHIM(bool, fixture_dirty, (struct page *page), folio_test_dirty(page_folio(page)))
SHIM(void, fixture_clear_dirty, (struct page *page), folio_clear_dirty(page_folio(page)))
/* Does the file know that it has dirty pages? */
SHIM(bool, fixture_has_dirty, (struct file *file),
     mapping_tagged(file->f_mapping, PAGECACHE_TAG_DIRTY))
SHIM(void, fixture_lock, (struct page *page), folio_lock(page_folio(page)))
SHIM(void, fixture_unlock, (struct page *page), folio_unlock(page_folio(page)))
SHIM(bool, fixture_uptodate, (struct page *page), folio_test_uptodate(page_folio(page)))
SHIM(bool, fixture_referenced, (struct page *page),
     folio_test_referenced(page_folio(page)) || folio_test_active(page_folio(page)))
SHIM(void, fixture_clear_referenced, (struct page *page), folio_clear_referenced(page_folio(page)))
SHIM(unsigned long, fixture_nr, (struct page *page), folio_nr_pages(page_folio(page)))
SHIM(void *, fixture_address, (struct page *page), page_address(page))
SHIM(struct page *, fixture_find, (struct file *file, pgoff_t index),
     find_get_page(file->f_mapping, index))
SHIM(void, fixture_put, (struct page *page), put_page(page))
SHIM(bool, fixture_is_huge, (unsigned long addr), pmd_leaf(fixture_pmd(addr)))
SHIM(void, fixture_set_mapping, (struct page *page, struct file *file),
     (void)(page_folio(page)->mapping = file ? file->f_mapping : NULL))
SHIM(unsigned long, fixture_pfn, (struct page *page), page_to_pfn(page))
SHIM(pgprot_t, fixture_noncached, (pgprot_t prot), pgprot_noncached(prot))
SHIM(pgprot_t, fixture_writecombine, (pgprot_t prot), pgprot_writecombine(prot))
SHIM(int, fixture_stay, (void),
     set_cpus_allowed_ptr(current, cpumask_of(raw_smp_processor_id())))
