// SPDX-License-Identifier: GPL-2.0
/*
 * Mesa's lavapipe by Vulkan: what it fills and copies in memory that is exported, and in buffers
 * that are imported, is what the CPU sees in the dma-buf, and the other way round.
 */
#include <vulkan/vulkan.h>

#include "client.h"

#define PAGE 4096
#define SIZE (4u << 20)
#define DMA_BUF VK_EXTERNAL_MEMORY_HANDLE_TYPE_DMA_BUF_BIT_EXT

#define OK(call) need(#call, (call) == VK_SUCCESS)

static VkDevice device;
static VkQueue queue;
static VkCommandBuffer commands;

/* The words of each page say which it is, and which time. */
static uint32_t word(size_t page, uint32_t time)
{
	return time << 16 | page;
}

static bool shows(const uint32_t *at, size_t first, uint32_t time)
{
	for (size_t i = 0; i < (SIZE - first * PAGE) / 4; i++) {
		if (at[i] != word(first + i * 4 / PAGE, time))
			return false;
	}
	return true;
}

static void begin(void)
{
	VkCommandBufferBeginInfo info = { .sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_BEGIN_INFO };

	OK(vkBeginCommandBuffer(commands, &info));
}

static void submit(void)
{
	VkSubmitInfo info = {
		.sType = VK_STRUCTURE_TYPE_SUBMIT_INFO,
		.commandBufferCount = 1, .pCommandBuffers = &commands
	};

	OK(vkEndCommandBuffer(commands));
	OK(vkQueueSubmit(queue, 1, &info, VK_NULL_HANDLE));
	OK(vkQueueWaitIdle(queue));
}

static void fill(VkBuffer buffer, uint32_t time)
{
	begin();
	for (size_t page = 0; page < SIZE / PAGE; page++)
		vkCmdFillBuffer(commands, buffer, page * PAGE, PAGE, word(page, time));
	submit();
}

static VkBuffer new_buffer(bool shared)
{
	VkExternalMemoryBufferCreateInfo external = {
		.sType = VK_STRUCTURE_TYPE_EXTERNAL_MEMORY_BUFFER_CREATE_INFO, .handleTypes = DMA_BUF
	};
	VkBufferCreateInfo info = {
		.sType = VK_STRUCTURE_TYPE_BUFFER_CREATE_INFO,
		.pNext = shared ? &external : NULL, .size = SIZE,
		.usage = VK_BUFFER_USAGE_TRANSFER_SRC_BIT | VK_BUFFER_USAGE_TRANSFER_DST_BIT
	};
	VkBuffer buffer;

	OK(vkCreateBuffer(device, &info, NULL, &buffer));
	return buffer;
}

/* Memory for it, of the first type that will do: all of lavapipe's is the CPU's. */
static VkDeviceMemory allocate(VkBuffer buffer, const void *how, uint32_t types)
{
	VkMemoryAllocateInfo info = { .sType = VK_STRUCTURE_TYPE_MEMORY_ALLOCATE_INFO, .pNext = how };
	VkMemoryRequirements requirements;
	VkDeviceMemory memory = VK_NULL_HANDLE;

	vkGetBufferMemoryRequirements(device, buffer, &requirements);
	need("a type of memory", types & requirements.memoryTypeBits);
	info.allocationSize = requirements.size;
	info.memoryTypeIndex = __builtin_ctz(types & requirements.memoryTypeBits);
	if (vkAllocateMemory(device, &info, NULL, &memory) == VK_SUCCESS)
		OK(vkBindBufferMemory(device, buffer, memory, 0));
	return memory;
}

/* What the GPU copies out of a buffer. */
static bool copies(VkBuffer from, uint32_t time)
{
	VkBuffer to = new_buffer(false);
	VkDeviceMemory memory = allocate(to, NULL, ~0u);
	VkBufferCopy all = { .size = SIZE };
	void *at;
	bool ok;

	begin();
	vkCmdCopyBuffer(commands, from, to, 1, &all);
	submit();
	OK(vkMapMemory(device, memory, 0, VK_WHOLE_SIZE, 0, &at));
	ok = shows(at, 0, time);
	vkDestroyBuffer(device, to, NULL);
	vkFreeMemory(device, memory, NULL);
	return ok;
}

/* What both sides write is what both sides see. */
static void share(const char *what, VkBuffer buffer, int fd)
{
	uint32_t *whole = map(fd, 0, SIZE), *part = map(fd, OFFSET, SIZE - OFFSET);

	say_exporter(fd);
	fill(buffer, 1);
	sync_cpu(fd, DMA_BUF_SYNC_START);
	check(what, "gpu_writes", shows(whole, 0, 1));
	check(what, "at_an_offset", shows(part, OFFSET / PAGE, 1));
	for (size_t i = 0; i < SIZE / 4; i++)
		whole[i] = word(i * 4 / PAGE, 2);
	sync_cpu(fd, DMA_BUF_SYNC_END);
	check(what, "gpu_reads", copies(buffer, 2));
	munmap(whole, SIZE);
	munmap(part, SIZE - OFFSET);
}

static void import(const char *what, int fd)
{
	PFN_vkGetMemoryFdPropertiesKHR properties_of =
		(void *)vkGetDeviceProcAddr(device, "vkGetMemoryFdPropertiesKHR");
	VkMemoryFdPropertiesKHR properties = { .sType = VK_STRUCTURE_TYPE_MEMORY_FD_PROPERTIES_KHR };
	/* It takes a file descriptor of its own. */
	VkImportMemoryFdInfoKHR info = {
		.sType = VK_STRUCTURE_TYPE_IMPORT_MEMORY_FD_INFO_KHR,
		.handleType = DMA_BUF, .fd = dup(fd)
	};
	VkBuffer buffer = new_buffer(true);
	VkDeviceMemory memory;

	OK(properties_of(device, DMA_BUF, fd, &properties));
	memory = allocate(buffer, &info, properties.memoryTypeBits);
	check(what, "imports", memory);
	if (memory)
		share(what, buffer, fd);
	vkDestroyBuffer(device, buffer, NULL);
	vkFreeMemory(device, memory, NULL);
	close(fd);
}

static void export(void)
{
	PFN_vkGetMemoryFdKHR fd_of = (void *)vkGetDeviceProcAddr(device, "vkGetMemoryFdKHR");
	VkExportMemoryAllocateInfo how = {
		.sType = VK_STRUCTURE_TYPE_EXPORT_MEMORY_ALLOCATE_INFO, .handleTypes = DMA_BUF
	};
	VkBuffer buffer = new_buffer(true);
	VkDeviceMemory memory = allocate(buffer, &how, ~0u);
	VkMemoryGetFdInfoKHR info = {
		.sType = VK_STRUCTURE_TYPE_MEMORY_GET_FD_INFO_KHR,
		.memory = memory, .handleType = DMA_BUF
	};
	int fd = -1;

	check("export", "exports", memory && fd_of(device, &info, &fd) == VK_SUCCESS);
	need("a buffer", fd >= 0);
	check("export", "size", lseek(fd, 0, SEEK_END) >= SIZE);
	share("export", buffer, fd);
	import("import_own", fd);
	vkDestroyBuffer(device, buffer, NULL);
	vkFreeMemory(device, memory, NULL);
}

static void open_device(void)
{
	static const char *const extensions[] = {
		"VK_KHR_external_memory_fd", "VK_EXT_external_memory_dma_buf"
	};
	VkApplicationInfo application = {
		.sType = VK_STRUCTURE_TYPE_APPLICATION_INFO,
		.apiVersion = VK_API_VERSION_1_1
	};
	VkInstanceCreateInfo instance_info = {
		.sType = VK_STRUCTURE_TYPE_INSTANCE_CREATE_INFO,
		.pApplicationInfo = &application
	};
	float priority = 1;
	VkDeviceQueueCreateInfo queue_info = {
		.sType = VK_STRUCTURE_TYPE_DEVICE_QUEUE_CREATE_INFO,
		.queueCount = 1, .pQueuePriorities = &priority
	};
	VkDeviceCreateInfo device_info = {
		.sType = VK_STRUCTURE_TYPE_DEVICE_CREATE_INFO,
		.queueCreateInfoCount = 1, .pQueueCreateInfos = &queue_info,
		.enabledExtensionCount = 2, .ppEnabledExtensionNames = extensions
	};
	VkCommandPoolCreateInfo pool_info = {
		.sType = VK_STRUCTURE_TYPE_COMMAND_POOL_CREATE_INFO,
		.flags = VK_COMMAND_POOL_CREATE_RESET_COMMAND_BUFFER_BIT
	};
	VkCommandBufferAllocateInfo commands_info = {
		.sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_ALLOCATE_INFO,
		.commandBufferCount = 1
	};
	VkPhysicalDeviceProperties properties;
	VkPhysicalDevice physical;
	VkInstance instance;
	uint32_t one = 1;

	OK(vkCreateInstance(&instance_info, NULL, &instance));
	need("a device",
	     vkEnumeratePhysicalDevices(instance, &one, &physical) >= VK_SUCCESS && one == 1);
	vkGetPhysicalDeviceProperties(physical, &properties);
	need("lavapipe", strstr(properties.deviceName, "llvmpipe"));
	OK(vkCreateDevice(physical, &device_info, NULL, &device));
	vkGetDeviceQueue(device, 0, 0, &queue);
	OK(vkCreateCommandPool(device, &pool_info, NULL, &commands_info.commandPool));
	OK(vkAllocateCommandBuffers(device, &commands_info, &commands));
}

int main(void)
{
	open_device();
	export();
	import("import_udmabuf", udmabuf(SIZE));
	import("import_heap", heap(SIZE));
	return failed;
}
