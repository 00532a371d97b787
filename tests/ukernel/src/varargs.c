/*
 * Kernel functions with variable arguments: they format, and hand the text on.
 */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

void	uk_console(const char *text);
void	uk_panic(const char *text) __attribute__((noreturn));
int	uk_make_dev(void *args, void **dev, const char *name);

int	uk_printf(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
void	uk_panicf(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
int	uk_make_dev_s(void *args, void **dev, const char *fmt, ...)
	    __attribute__((format(printf, 3, 4)));

int
uk_printf(const char *fmt, ...)
{
	char text[512];
	va_list ap;
	int n;

	va_start(ap, fmt);
	n = vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	uk_console(text);
	return (n);
}

void
uk_panicf(const char *fmt, ...)
{
	char text[512];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	uk_panic(text);
}

int
uk_make_dev_s(void *args, void **dev, const char *fmt, ...)
{
	char name[256];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(name, sizeof(name), fmt, ap);
	va_end(ap);
	return (uk_make_dev(args, dev, name));
}
