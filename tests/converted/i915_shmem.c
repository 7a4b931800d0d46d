// SPDX-License-Identifier: GPL-2.0
/*
 * KUnit suite i915_shmem: what i915's mock selftests leave out, whose objects have one page. It is
 * linked into i915, as it was and converted: Documentation/conversions.rst.
 */
#include <kunit/test.h>
#include <linux/shmem_fs.h>

#include "gem/i915_gem_object.h"
#include "i915_drv.h"
#include "selftests/mock_gem_device.h"

#include "fixture.h"

#define PAGES	40

struct object {
	struct drm_i915_private *i915;
	struct drm_i915_gem_object *gem;
	/* Those of its file, each with a reference of the test, and what their folios have then. */
	struct page *pages[PAGES];
	int refs[PAGES];
};

/* What the pages have, and nothing is on its way. */
static int refs(struct page *page)
{
	fixture_drain();
	return fixture_refs(page);
}

static int i915_shmem_init(struct kunit *test)
{
	struct object *object = kunit_kzalloc(test, sizeof(*object), GFP_KERNEL);

	KUNIT_ASSERT_NOT_NULL(test, object);
	fixture_stay();
	test->priv = object;
	object->i915 = mock_gem_device();
	KUNIT_ASSERT_NOT_NULL(test, object->i915);
	object->gem = i915_gem_object_create_shmem(object->i915, PAGES << PAGE_SHIFT);
	KUNIT_ASSERT_NOT_ERR_OR_NULL(test, object->gem);
	for (int i = 0; i < PAGES; i++) {
		struct page *page = shmem_read_mapping_page(object->gem->base.filp->f_mapping, i);

		KUNIT_ASSERT_NOT_ERR_OR_NULL(test, page);
		object->pages[i] = page;
		fixture_clear_dirty(page);
		fixture_clear_referenced(page);
	}
	/* Some may be of one folio. */
	for (int i = 0; i < PAGES; i++)
		object->refs[i] = refs(object->pages[i]);
	return 0;
}

static void i915_shmem_exit(struct kunit *test)
{
	struct object *object = test->priv;

	for (int i = 0; i < PAGES && object->pages[i]; i++)
		put_page(object->pages[i]);
	if (!IS_ERR_OR_NULL(object->gem))
		i915_gem_object_put(object->gem);
	if (object->i915)
		mock_destroy_device(object->i915);
}

/* The object's pages are those of its file, in their order, and are held. */
static void get(struct kunit *test, struct object *object)
{
	KUNIT_ASSERT_EQ(test, i915_gem_object_pin_pages_unlocked(object->gem), 0);
	for (pgoff_t i = 0; i < PAGES; i++) {
		KUNIT_EXPECT_PTR_EQ(test, i915_gem_object_get_page(object->gem, i), object->pages[i]);
		KUNIT_EXPECT_GT(test, refs(object->pages[i]), object->refs[i]);
	}
}

/* Nobody holds them any more. */
static void put(struct kunit *test, struct object *object)
{
	i915_gem_object_unpin_pages(object->gem);
	i915_gem_object_lock(object->gem, NULL);
	KUNIT_EXPECT_EQ(test, __i915_gem_object_put_pages(object->gem), 0);
	i915_gem_object_unlock(object->gem);
	for (int i = 0; i < PAGES; i++)
		KUNIT_EXPECT_EQ(test, refs(object->pages[i]), object->refs[i]);
}

static void expect_marks(struct kunit *test, struct object *object, bool dirty, bool referenced)
{
	for (int i = 0; i < PAGES; i++) {
		KUNIT_EXPECT_EQ(test, fixture_dirty(object->pages[i]), dirty);
		KUNIT_EXPECT_EQ(test, fixture_referenced(object->pages[i]), referenced);
	}
}

/* What nobody needs is not saved, whoever has written to it. */
static void not_needed(struct kunit *test)
{
	struct object *object = test->priv;

	get(test, object);
	object->gem->mm.dirty = true;
	object->gem->mm.madv = I915_MADV_DONTNEED;
	put(test, object);
	expect_marks(test, object, false, false);
}

static void clean(struct kunit *test)
{
	struct object *object = test->priv;

	get(test, object);
	object->gem->mm.dirty = false;
	put(test, object);
	expect_marks(test, object, false, true);
}

static void dirty(struct kunit *test)
{
	struct object *object = test->priv;

	get(test, object);
	object->gem->mm.dirty = true;
	put(test, object);
	expect_marks(test, object, true, true);
}

/* What lies side by side in memory is one segment, and segments begin and end with pages. */
static void segments(struct kunit *test)
{
	struct object *object = test->priv;
	struct scatterlist *sg;
	unsigned long bytes = 0;
	phys_addr_t end = 0;
	int i;

	get(test, object);
	for_each_sgtable_sg(object->gem->mm.pages, sg, i) {
		KUNIT_EXPECT_EQ(test, sg->offset, 0);
		KUNIT_EXPECT_EQ(test, sg->length % PAGE_SIZE, 0);
		KUNIT_EXPECT_NE(test, sg_phys(sg), end);
		end = sg_phys(sg) + sg->length;
		bytes += sg->length;
	}
	KUNIT_EXPECT_EQ(test, bytes, PAGES << PAGE_SHIFT);
	put(test, object);
}

/* Marked and put a second time they are as they were: what was set aside is found again. */
static void evictable(struct kunit *test)
{
	struct object *object = test->priv;
	struct address_space *mapping = object->gem->base.filp->f_mapping;

	for (int i = 0; i < 2; i++) {
		get(test, object);
		KUNIT_EXPECT_TRUE(test, mapping_unevictable(mapping));
		put(test, object);
		KUNIT_EXPECT_FALSE(test, mapping_unevictable(mapping));
	}
}

static struct kunit_case i915_shmem_cases[] = {
	KUNIT_CASE(not_needed),
	KUNIT_CASE(clean),
	KUNIT_CASE(dirty),
	KUNIT_CASE(segments),
	KUNIT_CASE(evictable),
	{}
};

/* i915 says whose module it is. */
static struct kunit_suite i915_shmem_suite = {
	.name = "i915_shmem",
	.init = i915_shmem_init,
	.exit = i915_shmem_exit,
	.test_cases = i915_shmem_cases,
};

kunit_test_suite(i915_shmem_suite);
