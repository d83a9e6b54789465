// What the instructions of PTX mean that need nothing but their operands, after its reference.
//
// A register is its bits. A function is named as its instruction, and takes its PTX type as a template argument.
#pragma once
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "thread.h"

namespace ptx {

using pred = bool;
using s8 = int8_t;
using u8 = uint8_t;
using s16 = int16_t;
using u16 = uint16_t;
using s32 = int32_t;
using u32 = uint32_t;
using s64 = int64_t;
using u64 = uint64_t;
using f32 = float;
using f64 = double;
using b8 = uint8_t;
using b16 = uint16_t;
using b32 = uint32_t;
using b64 = uint64_t;

template <int kBytes>
struct BitsOfSize;
template <>
struct BitsOfSize<1> {
  using type = uint8_t;
};
template <>
struct BitsOfSize<2> {
  using type = uint16_t;
};
template <>
struct BitsOfSize<4> {
  using type = uint32_t;
};
template <>
struct BitsOfSize<8> {
  using type = uint64_t;
};
template <class T>
using Bits = std::conditional_t<std::is_same_v<T, bool>, bool, typename BitsOfSize<sizeof(T)>::type>;

template <class T>
T value(Bits<T> bits) {
  return std::bit_cast<T>(bits);
}
// Of a result: what is not a number has one form in float32, whatever it was made from.
template <class T>
Bits<T> bits(T value) {
  if constexpr (std::is_same_v<T, f32>)
    if (value != value) return 0x7FFFFFFF;
  return std::bit_cast<Bits<T>>(value);
}

// ---- integers and numbers

template <class T>
Bits<T> add(Bits<T> a, Bits<T> b) {
  if constexpr (std::is_floating_point_v<T>) return bits<T>(value<T>(a) + value<T>(b));
  return static_cast<Bits<T>>(a + b);
}
template <class T>
Bits<T> sub(Bits<T> a, Bits<T> b) {
  if constexpr (std::is_floating_point_v<T>) return bits<T>(value<T>(a) - value<T>(b));
  return static_cast<Bits<T>>(a - b);
}
// The low half of an integer product.
template <class T>
Bits<T> mul(Bits<T> a, Bits<T> b) {
  if constexpr (std::is_floating_point_v<T>) return bits<T>(value<T>(a) * value<T>(b));
  return static_cast<Bits<T>>(uint64_t{a} * b);
}
template <class T>
auto mul_wide(Bits<T> a, Bits<T> b) {
  using Wide = typename BitsOfSize<2 * sizeof(T)>::type;
  return static_cast<Wide>(int64_t{value<T>(a)} * int64_t{value<T>(b)});
}
template <class T>
Bits<T> mad(Bits<T> a, Bits<T> b, Bits<T> c) {
  return static_cast<Bits<T>>(mul<T>(a, b) + c);
}
template <class T>
Bits<T> fma(Bits<T> a, Bits<T> b, Bits<T> c) {
  return bits<T>(std::fma(value<T>(a), value<T>(b), value<T>(c)));
}
// Of integers; by zero PTX leaves the result open.
template <class T>
Bits<T> div(Bits<T> a, Bits<T> b) {
  if constexpr (std::is_floating_point_v<T>) return bits<T>(value<T>(a) / value<T>(b));
  return b == 0 ? static_cast<Bits<T>>(-1) : static_cast<Bits<T>>(value<T>(a) / value<T>(b));
}
template <class T>
Bits<T> rem(Bits<T> a, Bits<T> b) {
  return b == 0 ? a : static_cast<Bits<T>>(value<T>(a) % value<T>(b));
}
// Of two numbers one of which is none, the other.
template <class T>
Bits<T> min(Bits<T> a, Bits<T> b) {
  if constexpr (std::is_floating_point_v<T>) return bits<T>(std::fmin(value<T>(a), value<T>(b)));
  return value<T>(a) < value<T>(b) ? a : b;
}
template <class T>
Bits<T> max(Bits<T> a, Bits<T> b) {
  if constexpr (std::is_floating_point_v<T>) return bits<T>(std::fmax(value<T>(a), value<T>(b)));
  return value<T>(a) > value<T>(b) ? a : b;
}
template <class T>
constexpr Bits<T> kSign = Bits<T>{1} << (8 * sizeof(T) - 1);
template <class T>
Bits<T> neg(Bits<T> a) {
  if constexpr (std::is_floating_point_v<T>) return a ^ kSign<T>;
  return static_cast<Bits<T>>(-a);
}
template <class T>
Bits<T> abs(Bits<T> a) {
  return a & ~kSign<T>;
}
// The sign of a on the value of b.
template <class T>
Bits<T> copysign(Bits<T> a, Bits<T> b) {
  return (a & kSign<T>) | (b & ~kSign<T>);
}
template <class T>
Bits<T> sqrt(Bits<T> a) {
  return bits<T>(std::sqrt(value<T>(a)));
}

// ---- bits

template <class T>
Bits<T> and_(Bits<T> a, Bits<T> b) {
  return a & b;
}
template <class T>
Bits<T> or_(Bits<T> a, Bits<T> b) {
  return a | b;
}
template <class T>
Bits<T> xor_(Bits<T> a, Bits<T> b) {
  return a ^ b;
}
template <class T>
Bits<T> not_(Bits<T> a) {
  if constexpr (std::is_same_v<T, pred>) return !a;
  return static_cast<Bits<T>>(~a);
}
template <class T>
Bits<T> shl(Bits<T> a, uint32_t by) {
  return by >= 8 * sizeof(T) ? 0 : static_cast<Bits<T>>(a << by);
}
template <class T>
Bits<T> shr(Bits<T> a, uint32_t by) {
  constexpr uint32_t kMost = 8 * sizeof(T);
  if (by < kMost) return static_cast<Bits<T>>(value<T>(a) >> by);
  return std::is_signed_v<T> && value<T>(a) < 0 ? static_cast<Bits<T>>(-1) : 0;
}
// The lowest `count` bits of a, from bit `at` of b on.
inline uint32_t bfi(uint32_t a, uint32_t b, uint32_t at, uint32_t count) {
  at &= 0xFF, count &= 0xFF;
  const uint32_t mask = shl<b32>(~uint32_t{0}, at) & ~shl<b32>(~uint32_t{0}, at + count);
  return (shl<b32>(a, at) & mask) | (b & ~mask);
}

// ---- comparisons: eq to ge are false where a or b is not a number, equ to geu true

template <class T>
bool is_ordered(Bits<T> a, Bits<T> b) {
  return value<T>(a) == value<T>(a) && value<T>(b) == value<T>(b);
}
template <class T>
bool setp_eq(Bits<T> a, Bits<T> b) {
  return value<T>(a) == value<T>(b);
}
template <class T>
bool setp_ne(Bits<T> a, Bits<T> b) {
  return is_ordered<T>(a, b) && value<T>(a) != value<T>(b);
}
template <class T>
bool setp_lt(Bits<T> a, Bits<T> b) {
  return value<T>(a) < value<T>(b);
}
template <class T>
bool setp_le(Bits<T> a, Bits<T> b) {
  return value<T>(a) <= value<T>(b);
}
template <class T>
bool setp_gt(Bits<T> a, Bits<T> b) {
  return value<T>(a) > value<T>(b);
}
template <class T>
bool setp_ge(Bits<T> a, Bits<T> b) {
  return value<T>(a) >= value<T>(b);
}
template <class T>
bool setp_equ(Bits<T> a, Bits<T> b) {
  return !setp_ne<T>(a, b);
}
template <class T>
bool setp_neu(Bits<T> a, Bits<T> b) {
  return !setp_eq<T>(a, b);
}
template <class T>
bool setp_ltu(Bits<T> a, Bits<T> b) {
  return !setp_ge<T>(a, b);
}
template <class T>
bool setp_leu(Bits<T> a, Bits<T> b) {
  return !setp_gt<T>(a, b);
}
template <class T>
bool setp_gtu(Bits<T> a, Bits<T> b) {
  return !setp_le<T>(a, b);
}
template <class T>
bool setp_geu(Bits<T> a, Bits<T> b) {
  return !setp_lt<T>(a, b);
}
template <class T>
bool setp_nan(Bits<T> a, Bits<T> b) {
  return !is_ordered<T>(a, b);
}
template <class T>
Bits<T> selp(Bits<T> a, Bits<T> b, bool which) {
  return which ? a : b;
}

// ---- conversions

// Between integers, between numbers, and of an integer to the nearest number.
template <class To, class From>
Bits<To> cvt(Bits<From> a) {
  return bits<To>(static_cast<To>(value<From>(a)));
}
// To the nearest whole number, of two the even one.
inline uint32_t cvt_rni(uint32_t a) {
  return bits<f32>(std::nearbyint(value<f32>(a)));
}

// The nearest number of a format with `kPrecision` bits and exponents from `kLeast` on, of two the even one, in 16
// bits.
template <int kPrecision, int kLeast>
uint16_t rounded(float x) {
  if (x != x) return 0x7FFF;
  constexpr int kMost = 1 - kLeast, kStored = kPrecision - 1;
  const uint16_t sign = std::signbit(x) ? 0x8000 : 0;
  const double size = std::abs(double{x}), too_large = std::ldexp(2 - std::ldexp(1, -kPrecision), kMost);
  if (size >= too_large) return sign | static_cast<uint16_t>((kMost - kLeast + 2) << kStored);
  const int exponent = size == 0 ? kLeast : std::max(std::ilogb(size), kLeast);
  const double units = std::nearbyint(std::ldexp(size, kStored - exponent));
  // The leading bit, where there is one, adds one to the exponent.
  return sign | static_cast<uint16_t>(((exponent - kLeast) << kStored) + static_cast<int>(units));
}
inline uint16_t cvt_f16_f32(uint32_t a) {
  return rounded<11, -14>(value<f32>(a));
}
inline uint32_t cvt_bf16x2_f32(uint32_t high, uint32_t low) {
  return uint32_t{rounded<8, -126>(value<f32>(high))} << 16 | rounded<8, -126>(value<f32>(low));
}
inline float half(uint16_t a) {
  const int exponent = a >> 10 & 31, fraction = a & 1023;
  float size = std::ldexp(static_cast<float>(exponent ? 1024 + fraction : fraction), std::max(exponent, 1) - 25);
  if (exponent == 31)
    size = fraction ? std::numeric_limits<float>::quiet_NaN() : std::numeric_limits<float>::infinity();
  return a & 0x8000 ? -size : size;
}
inline uint32_t cvt_f32_f16(uint16_t a) {
  return bits<f32>(half(a));
}

// ---- approximations: the nearest number, of all those that the hardware may give

// ftz: zero of the same sign for what is smaller than any normal number.
inline float flushed(float x) {
  return std::abs(x) < std::numeric_limits<float>::min() ? std::copysign(0.0f, x) : x;
}
inline uint32_t ex2_approx_ftz(uint32_t a) {
  return bits<f32>(flushed(static_cast<float>(std::exp2(double{flushed(value<f32>(a))}))));
}
inline uint32_t rcp_approx_ftz(uint32_t a) {
  return bits<f32>(flushed(static_cast<float>(1 / double{flushed(value<f32>(a))})));
}
inline uint32_t tanh_approx(uint32_t a) {
  return bits<f32>(static_cast<float>(std::tanh(double{value<f32>(a)})));
}
// Of the upper half of a, and nothing in the lower half of the result.
inline uint64_t rcp_approx_ftz_f64(uint64_t a) {
  constexpr uint64_t kUpper = ~uint64_t{0xFFFFFFFF};
  const double x = value<f64>(a & kUpper);
  return std::bit_cast<uint64_t>(1 / (std::fpclassify(x) == FP_SUBNORMAL ? std::copysign(0.0, x) : x)) & kUpper;
}
template <class T>
Bits<T> rcp_rn(Bits<T> a) {
  return bits<T>(1 / value<T>(a));
}

// ---- memory

template <class T>
T loaded(Thread& thread, int line, Space space, uint64_t address) {
  T value;
  thread.load(line, space, address, &value, sizeof value);
  return value;
}
template <int kCount, class T>
struct Vector {
  T at[kCount];
};

}  // namespace ptx
