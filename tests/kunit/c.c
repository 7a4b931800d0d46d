// SPDX-License-Identifier: GPL-2.0
/*
 * KUnit suite pagekit_c: what pagekit.h adds to the helpers. That arguments and
 * errors arrive, and that arrays are what C takes them for; the rest is tested in
 * Rust.
 */
#include <kunit/test.h>
#include <linux/mman.h>
#include <linux/module.h>
#include <linux/sizes.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#include <pagekit.h>

#include "fixture.h"

/* Page i of the file begins with i + 1. */
static struct file *filled(struct kunit *test, unsigned long count)
{
	struct file *file = fixture_shmem(count << PAGE_SHIFT, NULL);

	KUNIT_ASSERT_NOT_ERR_OR_NULL(test, file);
	/* As in fixture.rs: pages that tests hold can be pinned all the same, and drained. */
	fixture_set_movable(file, false);
	fixture_stay();
	for (u8 i = 0; i < count; i++) {
		loff_t pos = i * PAGE_SIZE;
		u8 value = i + 1;

		KUNIT_ASSERT_EQ(test, kernel_write(file, &value, 1, &pos), 1);
	}
	return file;
}

static int first_byte(struct page *page)
{
	return *(u8 *)page_address(page);
}

static int refs(struct page *page)
{
	fixture_drain();
	return fixture_refs(page);
}

static void pages_get_and_put(struct kunit *test)
{
	struct file *file = filled(test, 8);
	struct page **pages = pagekit_get_pages(file, 2, 4, 0);
	struct page *page;
	int held;

	KUNIT_ASSERT_NOT_ERR_OR_NULL(test, pages);
	for (int i = 0; i < 4; i++)
		KUNIT_EXPECT_EQ(test, first_byte(pages[i]), i + 3);

	page = pages[3];
	held = refs(page);
	fixture_clear_dirty(page);
	pagekit_put_pages(pages, 4, PAGEKIT_ACCESSED);
	KUNIT_EXPECT_EQ(test, refs(page), held - 1);
	KUNIT_EXPECT_FALSE(test, fixture_dirty(page));
	KUNIT_EXPECT_TRUE(test, fixture_referenced(page));

	pages = pagekit_get_pages(file, 5, 1, PAGEKIT_NO_RECLAIM);
	KUNIT_ASSERT_NOT_ERR_OR_NULL(test, pages);
	pagekit_put_pages(pages, 1, PAGEKIT_DIRTY);
	KUNIT_EXPECT_TRUE(test, fixture_dirty(page));
	KUNIT_EXPECT_EQ(test, refs(page), held - 1);

	KUNIT_EXPECT_EQ(test, PTR_ERR(pagekit_get_pages(file, 6, 3, 0)), -EINVAL);
	/* Those of other functions, and one of none. */
	KUNIT_EXPECT_EQ(test, PTR_ERR(pagekit_get_pages(file, 5, 1, PAGEKIT_WRITE)), -EINVAL);
	KUNIT_EXPECT_EQ(test, PTR_ERR(pagekit_get_pages(file, 5, 1, PAGEKIT_LARGE)), -EINVAL);
	KUNIT_EXPECT_EQ(test, PTR_ERR(pagekit_get_pages(file, 5, 1, BIT(31))), -EINVAL);
	KUNIT_EXPECT_EQ(test, refs(page), held - 1);
	pagekit_put_pages(NULL, 0, 0);
	pagekit_put_pages(NULL, 1, PAGEKIT_DIRTY);
	fput(file);
}

static void pages_alloc(struct kunit *test)
{
	struct page **pages = pagekit_alloc_pages(700, PAGEKIT_ACCOUNT);
	struct page *page;

	KUNIT_ASSERT_NOT_ERR_OR_NULL(test, pages);
	for (int i = 0; i < 700; i++) {
		KUNIT_EXPECT_EQ(test, fixture_nr(pages[i]), 1);
		KUNIT_EXPECT_NULL(test, memchr_inv(page_address(pages[i]), 0, PAGE_SIZE));
	}
	page = pages[699];
	get_page(page);
	pagekit_put_pages(pages, 700, 0);
	KUNIT_EXPECT_EQ(test, fixture_refs(page), 1);
	put_page(page);

	pages = pagekit_alloc_pages(700, PAGEKIT_LARGE);
	KUNIT_ASSERT_NOT_ERR_OR_NULL(test, pages);
	KUNIT_EXPECT_GT(test, fixture_nr(pages[0]), 1);
	pagekit_put_pages(pages, 700, 0);

	KUNIT_EXPECT_EQ(test, PTR_ERR(pagekit_alloc_pages(0, 0)), -EINVAL);
	KUNIT_EXPECT_EQ(test, PTR_ERR(pagekit_alloc_pages(1, PAGEKIT_NO_RECLAIM)), -EINVAL);
}

static struct pagekit_pins room(struct kunit *test, unsigned long count)
{
	struct pagekit_pins pins = {
		.pages = kvmalloc_array(count, sizeof(*pins.pages), GFP_KERNEL),
	};

	KUNIT_ASSERT_NOT_NULL(test, pins.pages);
	return pins;
}

static void pin_memfd(struct kunit *test)
{
	struct file *file = filled(test, 8);
	struct pagekit_pins pins = room(test, 5), none = {};

	for (int dirty = 0; dirty < 2; dirty++) {
		KUNIT_ASSERT_EQ(test, pagekit_pin_memfd(&pins, file, 4, 3), 0);
		KUNIT_EXPECT_EQ(test, pagekit_pin_memfd(&pins, file, 7, 2), -EINVAL);
		KUNIT_EXPECT_EQ(test, pins.count, 3);
		KUNIT_ASSERT_EQ(test, pagekit_pin_memfd(&pins, file, 0, 2), 0);
		KUNIT_ASSERT_EQ(test, pins.count, 5);
		for (int i = 0; i < 5; i++) {
			KUNIT_EXPECT_EQ(test, first_byte(pins.pages[i]), i < 3 ? i + 5 : i - 2);
			KUNIT_EXPECT_TRUE(test, fixture_maybe_pinned(pins.pages[i]));
			fixture_clear_dirty(pins.pages[i]);
		}
		pagekit_unpin(&pins, dirty ? PAGEKIT_DIRTY : 0);
		KUNIT_EXPECT_EQ(test, pins.count, 0);
		/* The file still has them. */
		for (int i = 0; i < 5; i++) {
			KUNIT_EXPECT_FALSE(test, fixture_maybe_pinned(pins.pages[i]));
			KUNIT_EXPECT_EQ(test, fixture_dirty(pins.pages[i]), dirty);
		}
	}
	kvfree(pins.pages);
	pagekit_unpin(NULL, PAGEKIT_DIRTY);
	pagekit_unpin(&none, PAGEKIT_DIRTY);
	fput(file);
}

/* That pages are in order is kept from call to call: what is unpinned at once depends on it. */
static void pin_order(struct kunit *test)
{
	const unsigned long nr = PMD_SIZE / PAGE_SIZE;
	struct file *file = fixture_hugetlb(2 * PMD_SIZE);
	struct pagekit_pins pins = room(test, 2 * nr);
	struct page *page;
	int held;

	if (IS_ERR(file) || vfs_fallocate(file, 0, 0, 2 * PMD_SIZE))
		kunit_skip(test, "no huge pages: boot with hugepages=");
	/* What was pinned once can be, also while it is held. */
	KUNIT_ASSERT_EQ(test, pagekit_pin_memfd(&pins, file, 0, 2 * nr), 0);
	pagekit_unpin(&pins, 0);
	page = fixture_find(file, 0);
	held = fixture_refs(page);

	KUNIT_ASSERT_EQ(test, pagekit_pin_memfd(&pins, file, 0, nr + 1), 0);
	KUNIT_ASSERT_EQ(test, pagekit_pin_memfd(&pins, file, nr + 1, nr - 1), 0);
	KUNIT_EXPECT_FALSE(test, pins.unordered);
	KUNIT_EXPECT_EQ(test, fixture_refs(page), held + nr);
	pagekit_unpin(&pins, 0);
	KUNIT_EXPECT_EQ(test, fixture_refs(page), held);

	/* One of the other folio where the third of this one should be. */
	KUNIT_ASSERT_EQ(test, pagekit_pin_memfd(&pins, file, 0, 2), 0);
	KUNIT_ASSERT_EQ(test, pagekit_pin_memfd(&pins, file, nr, 1), 0);
	KUNIT_ASSERT_EQ(test, pagekit_pin_memfd(&pins, file, 3, 5), 0);
	KUNIT_EXPECT_TRUE(test, pins.unordered);
	pagekit_unpin(&pins, 0);
	KUNIT_EXPECT_EQ(test, fixture_refs(page), held);
	KUNIT_EXPECT_FALSE(test, pins.unordered);

	fixture_put(page);
	kvfree(pins.pages);
	fput(file);
}

static unsigned long map(struct kunit *test, struct file *file, unsigned long at,
			 unsigned long count, unsigned long prot, unsigned long flags)
{
	unsigned long addr;

	fixture_stay();
	KUNIT_ASSERT_EQ(test, kunit_attach_mm(), 0);
	addr = vm_mmap(file, at, count << PAGE_SHIFT, prot, flags, 0);
	KUNIT_ASSERT_FALSE(test, IS_ERR_VALUE(addr));
	return addr;
}

static void pin_user(struct kunit *test)
{
	unsigned long addr = map(test, NULL, 0, 4, PROT_READ | PROT_WRITE,
				 MAP_PRIVATE | MAP_ANONYMOUS);
	unsigned long fixed = map(test, NULL, 0, 1, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS);
	struct pagekit_pins pins = room(test, 4);
	struct page *pages[3];

	KUNIT_EXPECT_EQ(test, pagekit_pin_user(&pins, addr, 1, PAGEKIT_DIRTY), -EINVAL);
	KUNIT_EXPECT_EQ(test, pagekit_pin_user(&pins, addr, 1, PAGEKIT_RETRY_MAYFAIL), -EINVAL);
	KUNIT_ASSERT_EQ(test, pagekit_pin_user(&pins, addr + PAGE_SIZE, 3, PAGEKIT_WRITE), 0);
	KUNIT_EXPECT_EQ(test, pagekit_pin_user(&pins, addr + 1, 1, PAGEKIT_WRITE), -EINVAL);
	KUNIT_EXPECT_EQ(test, pagekit_pin_user(&pins, fixed, 1, PAGEKIT_WRITE), -EFAULT);
	KUNIT_ASSERT_EQ(test, pagekit_pin_user(&pins, fixed, 1, 0), 0);
	KUNIT_ASSERT_EQ(test, pins.count, 4);
	for (int i = 0; i < 3; i++) {
		u8 __user *byte = (u8 __user *)(addr + (i + 1) * PAGE_SIZE);

		pages[i] = pins.pages[i];
		KUNIT_EXPECT_EQ(test, put_user(i + 7, byte), 0);
		KUNIT_EXPECT_EQ(test, first_byte(pages[i]), i + 7);
		KUNIT_EXPECT_TRUE(test, fixture_maybe_pinned(pages[i]));
		get_page(pages[i]);
	}
	pagekit_unpin(&pins, 0);
	for (int i = 0; i < 3; i++) {
		KUNIT_EXPECT_FALSE(test, fixture_maybe_pinned(pages[i]));
		put_page(pages[i]);
	}
	kvfree(pins.pages);
}

/* A driver that maps huge pages and a few more, at this page offset. */
#define COUNT	(PMD_SIZE / PAGE_SIZE + 3)
/* No folio of pagekit_alloc_pages() is larger. */
#define HAS_HUGE	(PMD_SIZE <= SZ_32M)
#define BASE	2

struct way {
	const char *name;
	bool pages, eager, huge;
};

static const struct way ways[] = {
	{ "pfns_on_fault" },
	{ "pfns_eagerly", .eager = true },
	{ "pfns_huge", .huge = true },
	{ "pages_on_fault", .pages = true },
	{ "pages_eagerly", .pages = true, .eager = true },
	{ "pages_huge", .pages = true, .huge = true },
};

struct object {
	const struct way *way;
	struct page **pages;
	unsigned int flags;
	/* What set-up has made of it, in the end */
	pgprot_t prot;
};

static vm_fault_t fault(struct vm_fault *vmf)
{
	struct object *object = vmf->vma->vm_private_data;

	return object->way->pages ? pagekit_fault_pages(vmf, object->pages, COUNT, BASE) :
				    pagekit_fault_pfns(vmf, object->pages, COUNT, BASE);
}

static vm_fault_t huge_fault(struct vm_fault *vmf, unsigned int order)
{
	struct object *object = vmf->vma->vm_private_data;

	return object->way->pages ?
		pagekit_huge_fault_pages(vmf, order, object->pages, COUNT, BASE) :
		pagekit_huge_fault_pfns(vmf, order, object->pages, COUNT, BASE);
}

static const struct vm_operations_struct ops = { .fault = fault };
static const struct vm_operations_struct huge_ops = { .fault = fault, .huge_fault = huge_fault };
static const struct vm_operations_struct no_ops = {};

static int set_up(struct vm_area_struct *vma, struct object *object)
{
	const struct way *way = object->way;

	/* What userspace takes for the start is the object's. */
	vma->vm_pgoff += BASE;
	vma->vm_private_data = object;
	vma->vm_ops = way->eager ? &no_ops : way->huge ? &huge_ops : &ops;
	if (way->eager)
		return way->pages ?
			pagekit_map_pages(vma, object->pages, COUNT, BASE, object->flags) :
			pagekit_map_pfns(vma, object->pages, COUNT, BASE, object->flags);
	return way->pages ? pagekit_setup_pages(vma, COUNT, BASE, object->flags) :
			    pagekit_setup_pfns(vma, COUNT, BASE, object->flags);
}

static int mmap(struct file *file, struct vm_area_struct *vma)
{
	struct object *object = file->private_data;
	int err = set_up(vma, object);

	object->prot = vma->vm_page_prot;
	return err;
}

static bool asks_for_write_combine(const struct object *object)
{
	return pgprot_val(object->prot) == pgprot_val(pgprot_writecombine(object->prot));
}

static const struct file_operations fops = { .mmap = mmap };

static void vma_maps(struct kunit *test)
{
	struct object object = { .way = test->param_value };
	u8 __user *at = (u8 __user *)SZ_512M;
	unsigned long too_many, refused;
	struct file *file;
	u8 value;

	object.pages = pagekit_alloc_pages(COUNT, PAGEKIT_LARGE);
	KUNIT_ASSERT_NOT_ERR_OR_NULL(test, object.pages);
	for (int i = 0; i < COUNT; i++)
		*(u8 *)page_address(object.pages[i]) = i;
	file = anon_inode_getfile("pagekit-kunit", &fops, &object, O_RDWR);
	KUNIT_ASSERT_NOT_ERR_OR_NULL(test, file);

	map(test, file, (unsigned long)at, COUNT, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED);
	KUNIT_EXPECT_EQ(test, fixture_advise_huge((unsigned long)at), 0);
	for (int i = 0; i < COUNT; i++) {
		KUNIT_EXPECT_EQ(test, get_user(value, at + i * PAGE_SIZE), 0);
		KUNIT_EXPECT_EQ(test, value, (u8)i);
		KUNIT_EXPECT_EQ(test, put_user(i + 1, at + i * PAGE_SIZE), 0);
		KUNIT_EXPECT_EQ(test, first_byte(object.pages[i]), (u8)(i + 1));
	}
	KUNIT_EXPECT_EQ(test, fixture_is_huge((unsigned long)at), object.way->huge && HAS_HUGE);
	KUNIT_EXPECT_FALSE(test, asks_for_write_combine(&object));

	/* Nobody brings back what was mapped eagerly. */
	pagekit_zap(file->f_mapping, 2, 0, BASE);
	pagekit_zap(file->f_mapping, 1, 2, BASE);
	for (int i = 0; i < 5; i++) {
		int gone = object.way->eager && (i == 1 || i == 2);

		KUNIT_EXPECT_EQ(test, get_user(value, at + i * PAGE_SIZE), gone ? -EFAULT : 0);
	}
	vm_munmap((unsigned long)at, COUNT << PAGE_SHIFT);

	too_many = vm_mmap(file, 0, (COUNT + 1) << PAGE_SHIFT, PROT_READ, MAP_SHARED, 0);
	KUNIT_EXPECT_EQ(test, (long)too_many, -EINVAL);

	object.flags = PAGEKIT_READ_ONLY;
	refused = vm_mmap(file, 0, PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, 0);
	KUNIT_EXPECT_EQ(test, (long)refused, -EACCES);
	map(test, file, (unsigned long)at, COUNT, PROT_READ, MAP_SHARED | MAP_FIXED);
	KUNIT_EXPECT_EQ(test, get_user(value, at), 0);
	KUNIT_EXPECT_EQ(test, value, 1);
	vm_munmap((unsigned long)at, COUNT << PAGE_SHIFT);
	object.flags = ~PAGEKIT_READ_ONLY;
	refused = vm_mmap(file, 0, PAGE_SIZE, PROT_READ, MAP_SHARED, 0);
	KUNIT_EXPECT_EQ(test, (long)refused, -EINVAL);
	__fput_sync(file);
	pagekit_put_pages(object.pages, COUNT, 0);
}

/* Small and huge PFNs are mapped so, referenced pages not at all. */
static void vma_write_combines(struct kunit *test)
{
	struct object object = { .way = test->param_value, .flags = PAGEKIT_WRITE_COMBINE };
	unsigned long at = SZ_512M, addr;
	struct file *file;
	u8 value;

	object.pages = pagekit_alloc_pages(COUNT, PAGEKIT_LARGE);
	KUNIT_ASSERT_NOT_ERR_OR_NULL(test, object.pages);
	KUNIT_EXPECT_EQ(test, fixture_clean(object.pages, COUNT), 0);
	file = anon_inode_getfile("pagekit-kunit", &fops, &object, O_RDWR);
	KUNIT_ASSERT_NOT_ERR_OR_NULL(test, file);
	KUNIT_ASSERT_EQ(test, kunit_attach_mm(), 0);
	addr = vm_mmap(file, at, COUNT << PAGE_SHIFT, PROT_READ, MAP_SHARED | MAP_FIXED, 0);
	KUNIT_EXPECT_EQ(test, (long)addr, object.way->pages ? -EINVAL : (long)at);
	KUNIT_EXPECT_EQ(test, asks_for_write_combine(&object), !object.way->pages);
	if (addr == at) {
		KUNIT_EXPECT_EQ(test, get_user(value, (u8 __user *)at), 0);
		KUNIT_EXPECT_EQ(test, value, 0);
		KUNIT_EXPECT_EQ(test, fixture_is_huge(at), object.way->huge && HAS_HUGE);
		/* On x86 memory says how it is mapped. */
		KUNIT_EXPECT_EQ(test, fixture_cache_mode(at) != 0, !IS_ENABLED(CONFIG_X86));
		vm_munmap(at, COUNT << PAGE_SHIFT);
	}
	__fput_sync(file);
	pagekit_put_pages(object.pages, COUNT, 0);
}

/* Whoever has no pages at present passes none. */
static void vma_without_pages(struct kunit *test)
{
	struct object object = { .way = &ways[0] };
	u8 __user *at = (u8 __user *)SZ_512M;
	struct file *file;
	u8 value;

	file = anon_inode_getfile("pagekit-kunit", &fops, &object, O_RDWR);
	KUNIT_ASSERT_NOT_ERR_OR_NULL(test, file);
	map(test, file, (unsigned long)at, COUNT, PROT_READ, MAP_SHARED | MAP_FIXED);
	KUNIT_EXPECT_EQ(test, get_user(value, at), -EFAULT);
	vm_munmap((unsigned long)at, COUNT << PAGE_SHIFT);
	__fput_sync(file);
}

static void name_of(const struct way *way, char *name)
{
	strscpy(name, way->name, KUNIT_PARAM_DESC_SIZE);
}

KUNIT_ARRAY_PARAM(ways, ways, name_of);

static struct kunit_case cases[] = {
	KUNIT_CASE(pages_get_and_put),
	KUNIT_CASE(pages_alloc),
	KUNIT_CASE(pin_memfd),
	KUNIT_CASE(pin_order),
	KUNIT_CASE(pin_user),
	KUNIT_CASE_PARAM(vma_maps, ways_gen_params),
	KUNIT_CASE_PARAM(vma_write_combines, ways_gen_params),
	KUNIT_CASE(vma_without_pages),
	{}
};

static struct kunit_suite suite = {
	.name = "pagekit_c",
	.test_cases = cases,
};

kunit_test_suite(suite);

MODULE_DESCRIPTION("KUnit tests of pagekit.h");
MODULE_AUTHOR("The pagekit authors");
MODULE_LICENSE("GPL");
