// The checker: races by the order of events, and the callbacks through which the compiler reports every load and store
// of a kernel.
#include <dlfcn.h>
#include <link.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <span>

#include "machine.h"
#include "streams.h"

namespace emulator {

// ---- places in the source -------------------------------------------------------------------------------------------
// A site is a place that a primitive was called from, or the return address of a callback (odd: shifted, plus one).

namespace {

std::vector<Site> sites;

uintptr_t image_base() {
  static const uintptr_t base = [] {
    Dl_info info;
    return dladdr(reinterpret_cast<void*>(&register_buffer), &info) ? reinterpret_cast<uintptr_t>(info.dli_fbase) : 0;
  }();
  return base;
}

uint32_t callback_site(void* return_address) {
  return static_cast<uint32_t>(reinterpret_cast<uintptr_t>(return_address) - image_base()) << 1 | 1;
}

// The innermost places of an address in this library, inlined callers after it: "a.cuh:10 < b.cuh:20".
std::string source_lines(uint32_t offset) {
  Dl_info info;
  if (!dladdr(reinterpret_cast<void*>(&register_buffer), &info)) return "?";
  char command[4200];
  snprintf(command, sizeof command, "addr2line -ie '%s' 0x%x 2>/dev/null", info.dli_fname, offset - 1);
  FILE* pipe = popen(command, "r");
  if (!pipe) return "?";
  std::string lines;
  char buffer[512];
  while (fgets(buffer, sizeof buffer, pipe)) {
    std::string line(buffer);
    line = line.substr(0, line.find_first_of("\n ("));
    line = line.substr(line.rfind('/') + 1);
    if (line.starts_with("primitives_emulated.h")) continue;  // the kernel's line is what matters
    lines += (lines.empty() ? "" : " < ") + line;
  }
  pclose(pipe);
  return lines.empty() ? "?" : lines;
}

}  // namespace

uint32_t site_id(Site site) {
  struct Known {
    const void* file;
    unsigned line;
    uint32_t id;
  };
  static std::map<std::pair<const void*, unsigned>, uint32_t> known;
  static Known recent[64] = {};  // by line: most calls ask for the same few
  Known& last = recent[site.line() % std::size(recent)];
  if (last.file == site.file_name() && last.line == site.line()) return last.id;
  auto [found, added] = known.try_emplace({site.file_name(), site.line()}, static_cast<uint32_t>(sites.size()) << 1);
  if (added) sites.push_back(site);
  last = {site.file_name(), site.line(), found->second};
  return found->second;
}

std::string site_text(uint32_t id) {
  return id & 1 ? source_lines(id >> 1) : text(sites[id >> 1]);
}

// ---- accesses -------------------------------------------------------------------------------------------------------

void fail_at(uint32_t site, const std::string& what) {
  fail(what + " by " + name_of(current) + " at " + site_text(site));
}

std::string place(const Region& region, uintptr_t address) {
  return region.name + "+" + std::to_string(address - region.begin);
}

namespace {

const char* verb(bool write) {
  return write ? "write" : "read";
}

// The thread of an event, also where it stands for asynchronous accesses.
std::string actor(const Event& event) {
  const bool async = event.thread() >= machine->thread_count;
  return (async ? "asynchronous access of " : "") +
         thread_name(async ? event.thread() - static_cast<uint32_t>(machine->thread_count) : event.thread());
}

[[noreturn]] void fail_race(const Region& region, uintptr_t address, const Event& old, bool old_write, bool write,
                            uint32_t site) {
  fail("race on " + place(region, address) + ": " + verb(write) + " by " + name_of(current) + " at " + site_text(site) +
       "; not ordered with " + verb(old_write) + " by " + actor(old) + " at " + site_text(old.site));
}

[[noreturn]] void fail_outside(uintptr_t address, const std::string& what, uint32_t site) {
  fail_at(site, what + "outside every buffer" + regions_near(address));
}

Region& region_of(uintptr_t address, size_t bytes, bool write, uint32_t site) {
  Region* region = region_at(address);
  const auto what = [&] { return std::string(verb(write)) + " of " + std::to_string(bytes) + " bytes "; };
  if (!region) fail_outside(address, what(), site);
  if (address + bytes > region->end) fail_at(site, what() + "at " + place(*region, address) + " crosses its end");
  if (region->dead) fail_at(site, "access to " + region->name + " of a CTA that has exited");
  if (region->owner && !region->owner->started)
    fail_at(site, "access to " + region->name + " of a CTA that has not started");
  return *region;
}

// Which bytes of the word at `at` lie in [begin, end), one bit each.
unsigned mask_within(uintptr_t at, uintptr_t begin, uintptr_t end) {
  unsigned mask = 0xF;
  if (at < begin) mask &= 0xF << (begin - at);
  if (at + 4 > end) mask &= 0xF >> (at + 4 - end);
  return mask;
}

// Where among the readers of a word one more is remembered: in place of this thread's own record, or a free one, or one
// that comes before this; else of any: the checker may then miss a race with the one that is dropped, and never reports
// a false one.
Event* place_for(std::span<Event> readers, const Event& as) {
  Event *own = nullptr, *free = nullptr;
  for (Event& r : readers) {
    if (!r.bytes())
      free = free ? free : &r;
    else if (r.thread() == as.thread() && (r.bytes() & ~as.bytes()) == 0)
      own = &r;
  }
  if (own || free) return own ? own : free;
  for (Event& r : readers)
    if ((r.bytes() & ~as.bytes()) == 0 && knows(current, r)) return &r;
  return &readers[((as.thread() * 2654435761u + as.epoch) >> 30) % readers.size()];
}

}  // namespace

void check(uintptr_t address, size_t bytes, Access access, uint32_t site, const Event& as) {
  const bool write = access == Access::kWrite || access == Access::kRelaxedWrite;
  const bool relaxed = access == Access::kRelaxedRead || access == Access::kRelaxedWrite;
  Region& region = region_of(address, bytes, write, site);
  const auto races = [relaxed, fiber = current, known = current->known->data()](const Event& old, unsigned mask) {
    return (old.bytes() & mask) && !(old.relaxed() && relaxed) && !knows(fiber, known, old);
  };
  for (uintptr_t at = address & ~uintptr_t(3); at < address + bytes; at += 4) {
    const unsigned mask = mask_within(at, address, address + bytes);
    const Event event(as.epoch, site, as.thread(), mask, relaxed);
    ShadowWord& word = region.shadow(at);
    if (word.in_flight) fail_at(site, "access to " + place(region, at) + " before what is sent to it has landed,");
    if (access == Access::kConstantRead && word.written)
      fail_at(site, "load_constant of " + place(region, at) + ", which this launch has written,");
    for (const Event& w : word.writes)
      if (races(w, mask)) fail_race(region, at, w, true, write, site);
    if (write) {
      const auto overwrite = [&](Event& r) {
        if (races(r, mask)) fail_race(region, at, r, false, write, site);
        r.forget(mask);
      };
      for (Event& r : word.reads) overwrite(r);
      if (word.copied)
        for (Event& r : word.copies) overwrite(r);
      for (Event& w : word.writes) w.forget(mask);
      if (!relaxed) word.initialised |= mask;  // a relaxed store counts when it lands
      word.written = 1;
      // A half-word neighbour may keep the first place; a third writer of one word replaces it.
      (word.writes[0].bytes() ? word.writes[1] : word.writes[0]) = event;
    } else {
      if (region.track_initialised && (~word.initialised & mask))
        fail_at(site, "read of " + place(region, at) + ", which nothing has written,");
      const bool copies = as.thread() >= machine->thread_count && !relaxed;
      if (copies) word.copied = 1;
      *place_for(copies ? std::span<Event>(word.copies) : std::span<Event>(word.reads), event) = event;
    }
  }
}

void check_access(uintptr_t address, size_t bytes, Access access, uint32_t site) {
  if (address % bytes) fail_at(site, "misaligned access of " + std::to_string(bytes) + " bytes");
  check(address, bytes, access, site, Event(current->epoch, site, current->id));
}

void prefetch(uintptr_t address, Site site) {
  RuntimeScope scope;
  if (!find_region(address)) fail_outside(address, "prefetch ", site_id(site));
}

void check_exit(Cta* cta) {
  if (!cta->shared) return;
  std::vector<Stamp> stamps;
  for (const Fiber* fiber : cta->fibers) stamps.push_back(stamp(fiber));
  const ClockRef known = join(stamps);
  const uint32_t first = cta->first_thread, last = first + static_cast<uint32_t>(cta->fibers.size());
  cta->shared->for_each_accessed([&](uintptr_t address, const ShadowWord& word) {
    auto require = [&](const Event& event) {
      if (!event.bytes() || (event.thread() >= first && event.thread() < last)) return;
      if ((*known)[event.thread()] >= event.epoch) return;
      fail("a CTA may exit before a peer's access to its shared memory: access by " + actor(event) + " at " +
           site_text(event.site) + " to " + place(*cta->shared, address) + " is not ordered before the exit");
    };
    for (const Event& w : word.writes) require(w);
    for (const Event& r : word.reads) require(r);
    for (const Event& r : word.copies) require(r);
  });
  cta->shared->dead = true;
}

namespace {

// The kernel's parameters are on the stack of launch(), and may be read.
bool is_parameter(uintptr_t address) {
  constexpr uintptr_t kStackAbove = 1 << 20;
  return address - machine->host_stack < kStackAbove;
}

// So may constants of the program.
bool is_host_constant(uintptr_t address) {
  static const std::vector<std::pair<uintptr_t, uintptr_t>> images = [] {
    std::vector<std::pair<uintptr_t, uintptr_t>> found;
    dl_iterate_phdr(
        [](dl_phdr_info* info, size_t, void* out) {
          for (int i = 0; i < info->dlpi_phnum; ++i)
            if (const auto& h = info->dlpi_phdr[i]; h.p_type == PT_LOAD)
              static_cast<decltype(found)*>(out)->push_back(
                  {info->dlpi_addr + h.p_vaddr, info->dlpi_addr + h.p_vaddr + h.p_memsz});
          return 0;
        },
        &found);
    return found;
  }();
  return std::any_of(images.begin(), images.end(),
                     [&](const auto& image) { return address >= image.first && address < image.second; });
}

void check_instrumented(void* p, size_t bytes, bool write, bool aligned, void* return_address) {
  const auto address = reinterpret_cast<uintptr_t>(p);
  RuntimeScope scope;
  if (!write && (is_parameter(address) || (!region_at(address) && is_host_constant(address)))) return;
  const uint32_t site = callback_site(return_address);
  const Access access = write ? Access::kWrite : Access::kRead;
  if (aligned && address % bytes) fail_at(site, "misaligned access of " + std::to_string(bytes) + " bytes");
  deliver_known_to(current, address, bytes);
  check(address, bytes, access, site, Event(current->epoch, site, current->id));
  if (options().preempt > 0 && double(random_bits() & 0xFFFF) < options().preempt * 0x10000) give_way(State::kReady);
}

// A load or store of instrumented code: most are of the thread's own stack.
inline void on_access(void* p, size_t bytes, bool write, bool aligned, void* return_address) {
  if (in_kernel_code && !is_own_stack(p)) check_instrumented(p, bytes, write, aligned, return_address);
}

}  // namespace

void check_host_access(const void* p, size_t bytes, HostAccess access) {
  const auto begin = reinterpret_cast<uintptr_t>(p);
  const bool write = access == HostAccess::kWrite;
  const auto what = [&] {
    return std::string("host code: ") + verb(write) + " of " + std::to_string(bytes) + " bytes ";
  };
  Region* region = find_region(begin);
  if (!region || begin + bytes > region->end) throw Error(what() + "outside every buffer");
  if (!region->track_initialised) return;
  for (uintptr_t at = begin & ~uintptr_t(3); at < begin + bytes; at += 4) {
    ShadowWord& word = region->shadow(at);
    const unsigned mask = mask_within(at, begin, begin + bytes);
    if (write)
      word.initialised |= mask;
    else if (~word.initialised & mask)
      throw Error(what() + "at " + place(*region, at) + ", which nothing has written");
  }
}

}  // namespace emulator

cudaError_t cudaMemsetAsync(void* p, int value, size_t bytes, cudaStream_t stream) {
  if (bytes == 0) return cudaSuccess;
  emulator::enqueue(stream, {[=] {
                      emulator::check_host_access(p, bytes, emulator::HostAccess::kWrite);
                      memset(p, value, bytes);
                    }});
  return cudaSuccess;
}

// ---- callbacks of -fsanitize=thread,alignment,bounds, without the sanitizers' own libraries
// ---------------------------

extern "C" {

#define RETURN_ADDRESS __builtin_return_address(0)
#define CALLBACKS(N)                                         \
  void __tsan_read##N(void* p) {                             \
    emulator::on_access(p, N, false, true, RETURN_ADDRESS);  \
  }                                                          \
  void __tsan_write##N(void* p) {                            \
    emulator::on_access(p, N, true, true, RETURN_ADDRESS);   \
  }                                                          \
  void __tsan_unaligned_read##N(void* p) {                   \
    emulator::on_access(p, N, false, false, RETURN_ADDRESS); \
  }                                                          \
  void __tsan_unaligned_write##N(void* p) {                  \
    emulator::on_access(p, N, true, false, RETURN_ADDRESS);  \
  }
CALLBACKS(1)
CALLBACKS(2)
CALLBACKS(4)
CALLBACKS(8)
CALLBACKS(16)
void __tsan_read_range(void* p, unsigned long n) {
  if (n) emulator::on_access(p, n, false, false, RETURN_ADDRESS);
}
void __tsan_write_range(void* p, unsigned long n) {
  if (n) emulator::on_access(p, n, true, false, RETURN_ADDRESS);
}
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void*, void*) {}
void __tsan_vptr_read(void*) {}

struct UbsanLocation {
  const char* file;
  uint32_t line, column;
};
struct UbsanType {
  uint16_t kind, info;
  char name[1];
};
struct UbsanMismatch {
  UbsanLocation location;
  const UbsanType* type;
  unsigned char log_alignment, kind;
};
struct UbsanBounds {
  UbsanLocation location;
  const UbsanType *array, *index;
};

static std::string ubsan_place(const UbsanLocation& location) {
  const char* slash = strrchr(location.file, '/');
  return " by " + emulator::name_of(emulator::current) + " at " + (slash ? slash + 1 : location.file) + ":" +
         std::to_string(location.line);
}
void __ubsan_handle_type_mismatch_v1(UbsanMismatch* data, uintptr_t) {
  if (!emulator::in_kernel_code) return;
  emulator::fail("address not aligned to " + std::to_string(1u << data->log_alignment) + " bytes for " +
                 data->type->name + ubsan_place(data->location));
}
void __ubsan_handle_out_of_bounds(UbsanBounds* data, uintptr_t index) {
  if (!emulator::in_kernel_code) return;
  emulator::fail("index " + std::to_string(static_cast<long>(index)) + " outside " + data->array->name +
                 ubsan_place(data->location));
}

}  // extern "C"
