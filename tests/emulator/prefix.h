// What sources of csrc include beside csrc. build.py compiles it once for all sources that are compiled with a change.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "emulator.h"
#include "streams.h"
