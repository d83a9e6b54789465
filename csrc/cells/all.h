// All cells. A new one: a file beside this one, and here its kind and a line for each of its operators.
#pragma once

#include <type_traits>

#include "gru.h"
#include "lstm.h"
#include "rnn.h"

namespace fusedlstm {

// Which type of cell: the kernels are compiled for each.
enum class CellKind : int { kLstm, kGru, kRnn };
inline constexpr int kCellKinds = 3;

template <CellKind kKind>
struct CellOf;
template <>
struct CellOf<CellKind::kLstm> {
  using type = Lstm;
};
template <>
struct CellOf<CellKind::kGru> {
  using type = Gru;
};
template <>
struct CellOf<CellKind::kRnn> {
  using type = Rnn;
};

constexpr CellSizes sizes_of(CellKind kind) {
  return kind == CellKind::kLstm ? Lstm::kSizes : kind == CellKind::kGru ? Gru::kSizes : Rnn::kSizes;
}

// A cell of its type, with the values that an operator has it with.
template <class Cell>
constexpr Cell make_cell(bool is_relu) {
  if constexpr (std::is_same_v<Cell, Rnn>)
    return {is_relu};
  else
    return {};
}

// A cell as its operators name it: <name>_layer and its kin. What differs between cells of one kind are values.
struct NamedCell {
  const char* name;
  CellKind kind;
  CellSizes sizes;
  bool is_relu = false;
};
inline constexpr NamedCell kCells[] = {
    {"lstm", CellKind::kLstm, Lstm::kSizes},
    {"gru", CellKind::kGru, Gru::kSizes},
    {"rnn_tanh", CellKind::kRnn, Rnn::kSizes},
    {"rnn_relu", CellKind::kRnn, Rnn::kSizes, true},
};

}  // namespace fusedlstm
