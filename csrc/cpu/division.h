// How the work of one layer is divided: a plan for all threads, a share for each, and tasks within a share.
#pragma once

#include "args.h"

namespace fusedlstm::cpu {

// How the work of a layer is divided among the threads of a team.
enum class Split : int {
  kRows,   // (direction, group of batch rows) each run alone through all steps: no synchronisation
  kUnits,  // hidden units are divided; the team meets once per time step
};

struct Plan {
  bool direct;  // forward weights are read where they are: no packing; for a handful of rows in all
  Split split;
  int threads;
};

// Items begin .. end - 1.
struct Range {
  int64_t begin, end;
  bool operator==(const Range&) const = default;
};
// Those of the parts `which`, of `count` as even as can be.
constexpr Range parts_of(int64_t n, Range which, int64_t count) {
  return {n * which.begin / count, n * which.end / count};
}
constexpr Range part(int64_t n, int64_t index, int64_t count) {
  return parts_of(n, {index, index + 1}, count);
}

// The shares first .. last - 1 of `count`, which one thread works on: usually one share, more where the team has fewer
// threads. `meet` returns when all shares have called it; what was written before is then visible to all. A meeting
// that took too long is the team's last one: the thread that has share 0 comes out of it with all shares, the others
// with none, and none of them waits again. So what to work on is asked for anew after each meeting.
struct Share {
  int first, last, count;
  void* team;       // null: nobody to meet
  int64_t met = 0;  // when this thread last came to a meeting, in the team's own unit
  void meet();      // team.cpp
  // Tells the team that this thread waited so many ticks (spin.h) for a late one: the next calls then go without.
  void lose(int64_t waited) const;
  Range of(int64_t n) const { return parts_of(n, {first, last}, count); }
};

// What runs through all time steps together: some batch rows of some directions. Where the rows are divided it is
// alone and meets nobody; where the units are, it is the whole layer and `team` is the share of it to work on.
struct Task {
  Range directions, rows;
  int64_t group;  // of rows
  Share* team;
  void meet() const {
    if (team) team->meet();
  }
  // The items to work on, of `n` in each direction.
  Range of(int64_t n) const {
    return team ? team->of(directions.end * n) : Range{directions.begin * n, directions.end * n};
  }
};

// Groups of rows in one direction: as many as keep every thread busy.
constexpr int64_t row_groups(const Plan& plan, const Shape& shape) {
  return plan.split == Split::kUnits ? 1 : (plan.threads + shape.directions - 1) / shape.directions;
}

// The most batch rows of a group.
constexpr int64_t rows_of_group(const Plan& plan, const Shape& shape) {
  const int64_t groups = row_groups(plan, shape);
  return (shape.batch + groups - 1) / groups;
}

// Rows of the time steps that are taken at once, at least, for full tiles.
inline constexpr int64_t kChunkRows = 48;

// Time steps of so many rows each that a layer takes at once which reads what another one makes beside it: by as many
// as it is behind it is late to the end. Even parts of them have 4 or more, if not all, and so 4 rows, fewer of which
// are summed in other ways (tile.h, bfloat16_tiles.h): parts do not decide the last bit.
constexpr int64_t awaited_steps(int64_t steps, int64_t rows) {
  constexpr int64_t kParts = 16, kLeast = 8;
  const int64_t full = rows > 0 ? (kChunkRows + rows - 1) / rows : 1, least = full > kLeast ? full : kLeast;
  return steps / kParts > least ? steps / kParts : least;
}

// Runs body(direction, items) for a range of items, of which each direction has `n`.
template <class Body>
void for_each_direction(Range range, int64_t n, Body body) {
  for (int64_t i = range.begin; i < range.end;) {
    const int64_t d = i / n, end = range.end < (d + 1) * n ? range.end : (d + 1) * n;
    body(d, Range{i - d * n, end - d * n});
    i = end;
  }
}

// Runs body(task) for every task of a share.
template <class Body>
void for_each_task(const Plan& plan, const Shape& shape, Share& share, Body body) {
  if (plan.split == Split::kUnits) return body(Task{{0, shape.directions}, {0, shape.batch}, 0, &share});
  const int64_t groups = row_groups(plan, shape);
  const Range tasks = share.of(shape.directions * groups);
  for (int64_t i = tasks.begin; i < tasks.end; ++i) {
    const int64_t d = i / groups, group = i % groups;
    body(Task{{d, d + 1}, part(shape.batch, group, groups), group, nullptr});
  }
}

}  // namespace fusedlstm::cpu
