// Which step a recurrence is at, and where its rows are (args.h, Rows); and the arena of a call's scratch memory.
#pragma once

#include "cpu/division.h"
#include "pack.h"

namespace fusedlstm::cpu {

// One step of direction d, scan position s at time step t, and what Rows says of it. A value, which stays in registers:
// behind each store of a result the compiler must read again what lies in memory.
struct Step {
  int64_t d, s, t;
  int64_t first_row;
  const int64_t* lengths;
  const bool* reset_after;
  int64_t reset_batch;

  FUSEDLSTM_INLINE int64_t row(int64_t b) const { return first_row + b; }
  // Whether batch row b runs; the branch that does not is rare enough.
  FUSEDLSTM_INLINE bool active(int64_t b) const { return __builtin_expect(!lengths || t < lengths[b], true); }
  // Whether batch row b enters the next step from the reset state.
  FUSEDLSTM_INLINE bool resets(int64_t b) const {
    return __builtin_expect(reset_after && reset_after[b * reset_batch], false);
  }
};

class RowIndex {
 public:
  // is_reverse: of one direction, which is the reverse one.
  RowIndex(const Shape& shape, const Rows& rows, bool is_reverse = false)
      : shape(shape), rows(rows), forward(is_reverse ? 1 : 0) {}

  // Time step of scan position s: the reverse direction runs from the end.
  FUSEDLSTM_INLINE int64_t step(int64_t s, int64_t direction) const {
    return direction == forward ? s : shape.steps - 1 - s;
  }
  FUSEDLSTM_INLINE int64_t row(int64_t t, int64_t b) const {
    return (rows.offsets ? rows.offsets[t] : t * shape.batch) + b;
  }
  FUSEDLSTM_INLINE bool active(int64_t t, int64_t b) const { return !rows.lengths || t < rows.lengths[b]; }
  FUSEDLSTM_INLINE bool reset(int64_t t, int64_t b) const {
    return rows.reset && rows.reset[t * rows.reset_step + b * rows.reset_batch];
  }
  // The step of direction d at scan position s.
  FUSEDLSTM_INLINE Step at(int64_t d, int64_t s) const {
    const int64_t t = step(s, d);
    const bool* after = rows.reset && s + 1 < shape.steps ? rows.reset + step(s + 1, d) * rows.reset_step : nullptr;
    return {d, s, t, row(t, 0), rows.lengths, after, rows.reset_batch};
  }
  // How many of the batch rows `range` exist at step t: all of them, or a prefix in a packed batch.
  FUSEDLSTM_INLINE int64_t rows_at(int64_t t, Range range) const {
    if (!rows.offsets) return range.end - range.begin;
    const int64_t end = rows.offsets[t + 1] - rows.offsets[t];
    return end <= range.begin ? 0 : (end < range.end ? end : range.end) - range.begin;
  }
  template <class T>
  FUSEDLSTM_INLINE const T* data_row(const RowData& data, int64_t t, int64_t b) const {
    const T* p = static_cast<const T*>(data.data);
    return rows.offsets ? p + (rows.offsets[t] + b) * data.batch : p + t * data.step + b * data.batch;
  }

 private:
  const Shape& shape;
  const Rows& rows;
  const int64_t forward;  // the direction that runs from the beginning
};

// A row of a state, or null where there is none.
template <class T>
const T* state_row(const State& s, int64_t d, int64_t b) {
  return s.data ? static_cast<const T*>(s.data) + d * s.direction + b * s.batch : nullptr;
}

// to[0 .. padded) = a row of a state of n elements, or zeros where there is none, and zeros behind it.
template <class K>
FUSEDLSTM_NOINLINE void widen_state(typename K::acc* to, const State& from, int64_t d, int64_t b, int64_t n,
                                    int64_t padded) {
  using V = typename K::V;
  const auto* row = state_row<typename K::storage>(from, d, b);
  for (int64_t u = 0; u < padded; u += K::kLanes) store(to + u, row && u < n ? K::load(row + u, n - u) : V{});
}

// Row i of a dense state of n elements a row, if it is asked for.
template <class K>
FUSEDLSTM_NOINLINE void narrow_state(void* to, const typename K::acc* from, int64_t i, int64_t n) {
  if (!to) return;
  for (int64_t u = 0; u < n; u += K::kLanes)
    K::store(static_cast<typename K::storage*>(to) + i * n + u, load<typename K::V>(from + u), n - u);
}

// Hands out 64-byte aligned pieces of one block. With a null base it only counts.
struct Arena {
  char* base;
  int64_t used = 0;
  template <class T>
  T* take(int64_t n) {
    T* p = reinterpret_cast<T*>(base + used);
    used += round_up(n * int64_t(sizeof(T)), 64);
    return p;
  }
};

}  // namespace fusedlstm::cpu
