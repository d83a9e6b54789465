// Matrix products of a warp: D = A B + C, of 16 rows and 8 columns.
#include <cstring>

#include "instructions.h"
#include "launch.h"

namespace ptx {
namespace {

struct Shape {
  int k;        // columns of A
  int element;  // bits of an element
  const char* name;
};
constexpr Shape shape_of(Mma kind) {
  switch (kind) {
    case Mma::kBf16K16:
      return {16, 16, "mma of bf16"};
    case Mma::kF16K16:
      return {16, 16, "mma of f16"};
    case Mma::kF16K8:
      return {8, 16, "mma of f16, k8"};
    case Mma::kTf32K8:
      break;
  }
  return {8, 32, "mma of tf32"};
}

// Element i of a fragment, which lies in registers from the low bits up.
float element(Mma kind, const uint32_t* registers, int i) {
  if (kind == Mma::kTf32K8) return value<f32>(registers[i] & 0xFFFFE000);  // has no more bits
  const auto bits = static_cast<uint16_t>(registers[i / 2] >> 16 * (i % 2));
  return kind == Mma::kBf16K16 ? value<f32>(uint32_t{bits} << 16) : half(bits);
}

struct Operands {
  Mma kind;
  uint32_t *d, a[4], b[2], c[4];
};

// After the tables of fragments in the reference, by lane and number of the element.
void multiply(void* const* lanes) {
  const Mma kind = static_cast<Operands*>(lanes[0])->kind;
  const Shape shape = shape_of(kind);
  double a[16][16], b[16][8];
  for (int l = 0; l < 32; ++l) {
    const auto& own = *static_cast<Operands*>(lanes[l]);
    const int group = l >> 2, within = l % 4;
    for (int i = 0; i < shape.k / 2; ++i) {
      int row, column;
      if (shape.element == 32) {
        row = i == 0 || i == 2 ? group : group + 8;
        column = i < 2 ? within : within + 4;
      } else {
        row = i / 2 % 2 ? group + 8 : group;
        column = 2 * within + i % 2 + (i >= 4 ? 8 : 0);
      }
      a[row][column] = element(kind, own.a, i);
    }
    for (int i = 0; i < shape.k / 4; ++i) {
      const int row = shape.element == 32 ? within + 4 * i : 2 * within + i % 2 + (i >= 2 ? 8 : 0);
      b[row][group] = element(kind, own.b, i);
    }
  }
  for (int l = 0; l < 32; ++l) {
    const auto& own = *static_cast<Operands*>(lanes[l]);
    for (int i = 0; i < 4; ++i) {
      const int row = (l >> 2) + (i < 2 ? 0 : 8), column = 2 * (l % 4) + i % 2;
      double sum = value<f32>(own.c[i]);
      for (int k = 0; k < shape.k; ++k) sum += a[row][k] * b[k][column];
      own.d[i] = bits<f32>(static_cast<float>(sum));
    }
  }
}

}  // namespace

void Launch::mma(int line, Mma kind, uint32_t* d, const uint32_t* a, const uint32_t* b, const uint32_t* c) {
  const Shape shape = shape_of(kind);
  Operands operands{kind, d, {}, {}, {}};
  std::memcpy(operands.a, a, static_cast<size_t>(shape.k * shape.element / 16));  // of 32 lanes, bytes of each
  std::memcpy(operands.b, b, static_cast<size_t>(shape.k * shape.element / 32));
  std::memcpy(operands.c, c, sizeof operands.c);
  gather(shape.name, line, true, ~0u, &operands, multiply);
}

}  // namespace ptx
