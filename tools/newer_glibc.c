/* What the headers of a newer glibc put into a program without being asked, for one that runs with glibc 2.28. */

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

/* Since 2.32: whether the C++ library may count references without atomic instructions. "No" is always right. */
char __libc_single_threaded = 0;

/* Since 2.38, in place of the functions without the prefix, which do not know binary numbers (0b101). */
long __isoc23_strtol(const char* text, char** end, int base) {
  return strtol(text, end, base);
}

int __isoc23_sscanf(const char* text, const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  const int read = vsscanf(text, format, arguments);
  va_end(arguments);
  return read;
}
