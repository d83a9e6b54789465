// Stands in for an NVIDIA driver, which has no device: libcuda.so.1 of the version in STUB_DRIVER, 1000 * major +
// 10 * minor. Like a driver it has no function that came after it; those that it has say that they are not supported.
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { kSuccess = 0, kNotFound = 500, kNotSupported = 801, kVersionNotSufficient = 2 };

int cuInit(unsigned flags) {
  (void)flags;
  return kSuccess;
}

int cuDriverGetVersion(int* version) {
  *version = atoi(getenv("STUB_DRIVER"));
  return kSuccess;
}

static int not_supported(void) {
  return kNotSupported;
}

int cuGetProcAddress_v2(const char* name, void** function, int version, uint64_t flags, int* status) {
  (void)flags;
  int own_version;
  cuDriverGetVersion(&own_version);
  const int is_known = version <= own_version;
  if (!strcmp(name, "cuInit"))
    *function = cuInit;
  else if (!strcmp(name, "cuDriverGetVersion"))
    *function = cuDriverGetVersion;
  else if (!strcmp(name, "cuGetProcAddress"))
    *function = cuGetProcAddress_v2;
  else
    *function = is_known ? not_supported : NULL;
  if (status) *status = is_known ? kSuccess : kVersionNotSufficient;
  return is_known ? kSuccess : kNotFound;
}
