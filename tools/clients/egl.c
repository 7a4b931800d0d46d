// SPDX-License-Identifier: GPL-2.0
/*
 * Mesa's llvmpipe by EGL: what is rendered into a texture that is exported, and into buffers that
 * are imported, is what the CPU sees in the dma-buf, and the other way round.
 */
#include <EGL/egl.h>
#include <EGL/eglext.h>
#include <GLES2/gl2.h>
#include <GLES2/gl2ext.h>
#include <drm/drm_fourcc.h>

#include "client.h"

/* Its lines are of 1 KiB, and so are what Mesa makes of them. */
#define LENGTH 256
#define PITCH (4 * LENGTH)
#define SIZE (PITCH * LENGTH)

#define LOAD(type, name) type name = (type)eglGetProcAddress(#name)

static EGLDisplay display;
static EGLContext context;

/* Each line has another red, and all have the green of this time. */
static void pixel(uint8_t *at, int line, uint8_t green)
{
	at[0] = line;
	at[1] = green;
	at[2] = 0;
	at[3] = 255;
}

static void write_lines(int fd, uint8_t *at, uint8_t green)
{
	sync_cpu(fd, DMA_BUF_SYNC_START);
	for (int i = 0; i < LENGTH * LENGTH; i++)
		pixel(at + 4 * i, i / LENGTH, green);
	sync_cpu(fd, DMA_BUF_SYNC_END);
}

/* Whether there are these lines from `first` on. */
static bool has_lines(const uint8_t *at, int first, uint8_t green)
{
	uint8_t want[4];

	for (int i = 0; i < LENGTH * (LENGTH - first); i++) {
		pixel(want, first + i / LENGTH, green);
		if (memcmp(at + 4 * i, want, sizeof(want)))
			return false;
	}
	return true;
}

static bool shows(int fd, const uint8_t *at, int first, uint8_t green)
{
	bool ok;

	sync_cpu(fd, DMA_BUF_SYNC_START);
	ok = has_lines(at, first, green);
	sync_cpu(fd, DMA_BUF_SYNC_END);
	return ok;
}

static void render(uint8_t green)
{
	glEnable(GL_SCISSOR_TEST);
	for (int line = 0; line < LENGTH; line++) {
		glScissor(0, line, LENGTH, 1);
		glClearColor(line / 255.0f, green / 255.0f, 0, 1);
		glClear(GL_COLOR_BUFFER_BIT);
	}
	glFinish();
}

static bool renders_from(uint8_t green)
{
	static uint8_t pixels[SIZE];

	memset(pixels, 0, SIZE);
	glReadPixels(0, 0, LENGTH, LENGTH, GL_RGBA, GL_UNSIGNED_BYTE, pixels);
	return has_lines(pixels, 0, green);
}

/* A texture to render into. */
static GLuint texture(void)
{
	GLuint texture;

	glGenTextures(1, &texture);
	glBindTexture(GL_TEXTURE_2D, texture);
	glTexParameteri(GL_TEXTURE_2D, GL_TEXTURE_MIN_FILTER, GL_NEAREST);
	return texture;
}

static GLuint framebuffer(GLuint texture)
{
	GLuint framebuffer;

	glGenFramebuffers(1, &framebuffer);
	glBindFramebuffer(GL_FRAMEBUFFER, framebuffer);
	glFramebufferTexture2D(GL_FRAMEBUFFER, GL_COLOR_ATTACHMENT0, GL_TEXTURE_2D, texture, 0);
	need("a framebuffer", glCheckFramebufferStatus(GL_FRAMEBUFFER) == GL_FRAMEBUFFER_COMPLETE);
	return framebuffer;
}

static void import(const char *what, int fd)
{
	LOAD(PFNEGLCREATEIMAGEKHRPROC, eglCreateImageKHR);
	LOAD(PFNEGLDESTROYIMAGEKHRPROC, eglDestroyImageKHR);
	LOAD(PFNGLEGLIMAGETARGETTEXTURE2DOESPROC, glEGLImageTargetTexture2DOES);
	EGLint attributes[] = {
		EGL_WIDTH, LENGTH, EGL_HEIGHT, LENGTH, EGL_LINUX_DRM_FOURCC_EXT, DRM_FORMAT_ABGR8888,
		EGL_DMA_BUF_PLANE0_FD_EXT, fd, EGL_DMA_BUF_PLANE0_OFFSET_EXT, 0,
		EGL_DMA_BUF_PLANE0_PITCH_EXT, PITCH, EGL_NONE
	};
	EGLImageKHR image = eglCreateImageKHR(display, EGL_NO_CONTEXT, EGL_LINUX_DMA_BUF_EXT, NULL,
					      attributes);
	uint8_t *whole = map(fd, 0, SIZE), *part = map(fd, OFFSET, SIZE - OFFSET);
	GLuint name, target;

	say_exporter(fd);
	check(what, "imports", image != EGL_NO_IMAGE_KHR);
	if (image == EGL_NO_IMAGE_KHR)
		return;
	name = texture();
	glEGLImageTargetTexture2DOES(GL_TEXTURE_2D, image);
	target = framebuffer(name);
	write_lines(fd, whole, 10);
	check(what, "gpu_reads", renders_from(10));
	render(20);
	check(what, "gpu_writes", shows(fd, whole, 0, 20));
	check(what, "at_an_offset", shows(fd, part, OFFSET / PITCH, 20));
	glDeleteFramebuffers(1, &target);
	glDeleteTextures(1, &name);
	eglDestroyImageKHR(display, image);
	munmap(whole, SIZE);
	munmap(part, SIZE - OFFSET);
	close(fd);
}

/* Exports a texture, and returns its buffer. */
static int export(void)
{
	LOAD(PFNEGLCREATEIMAGEKHRPROC, eglCreateImageKHR);
	LOAD(PFNEGLEXPORTDMABUFIMAGEQUERYMESAPROC, eglExportDMABUFImageQueryMESA);
	LOAD(PFNEGLEXPORTDMABUFIMAGEMESAPROC, eglExportDMABUFImageMESA);
	int fd = -1, fourcc = 0, planes = 0, stride = 0, offset = -1;
	uint8_t *whole, *part;
	EGLImageKHR image;
	GLuint name;

	name = texture();
	glTexImage2D(GL_TEXTURE_2D, 0, GL_RGBA, LENGTH, LENGTH, 0, GL_RGBA, GL_UNSIGNED_BYTE, NULL);
	framebuffer(name);
	render(1);
	image = eglCreateImageKHR(display, context, EGL_GL_TEXTURE_2D_KHR,
				  (EGLClientBuffer)(uintptr_t)name, NULL);
	need("an image", image != EGL_NO_IMAGE_KHR);
	eglExportDMABUFImageQueryMESA(display, image, &fourcc, &planes, NULL);
	eglExportDMABUFImageMESA(display, image, &fd, &stride, &offset);
	check("export", "exports", fd >= 0);
	need("a buffer", fd >= 0);
	say_exporter(fd);
	check("export", "layout",
	      fourcc == DRM_FORMAT_ABGR8888 && planes == 1 && stride == PITCH && !offset);
	check("export", "size", lseek(fd, 0, SEEK_END) >= SIZE);
	whole = map(fd, 0, SIZE);
	part = map(fd, OFFSET, SIZE - OFFSET);
	check("export", "cpu_reads", shows(fd, whole, 0, 1));
	check("export", "at_an_offset", shows(fd, part, OFFSET / PITCH, 1));
	render(2);
	check("export", "renders_on", shows(fd, whole, 0, 2));
	write_lines(fd, whole, 3);
	check("export", "cpu_writes", renders_from(3));
	munmap(whole, SIZE);
	munmap(part, SIZE - OFFSET);
	return fd;
}

int main(void)
{
	LOAD(PFNEGLGETPLATFORMDISPLAYEXTPROC, eglGetPlatformDisplayEXT);
	static const EGLint version[] = { EGL_CONTEXT_CLIENT_VERSION, 2, EGL_NONE };

	display = eglGetPlatformDisplayEXT(EGL_PLATFORM_SURFACELESS_MESA, EGL_DEFAULT_DISPLAY, NULL);
	need("EGL", eglInitialize(display, NULL, NULL) && eglBindAPI(EGL_OPENGL_ES_API));
	context = eglCreateContext(display, EGL_NO_CONFIG_KHR, EGL_NO_CONTEXT, version);
	need("a context", eglMakeCurrent(display, EGL_NO_SURFACE, EGL_NO_SURFACE, context));
	need("llvmpipe", strstr((const char *)glGetString(GL_RENDERER), "llvmpipe"));
	import("import_own", export());
	import("import_udmabuf", udmabuf(SIZE));
	import("import_heap", heap(SIZE));
	eglTerminate(display);
	return failed;
}
