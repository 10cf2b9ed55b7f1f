// Numbers as tensors store them, and as kernels compute: 16 bits are widened to float.
#pragma once

#include <cstdint>
#include <cstring>

struct BFloat16 {
  uint16_t bits;  // the upper half of a float
};

template <class Stored>
struct WideOf {
  using type = Stored;
};
template <>
struct WideOf<BFloat16> {
  using type = float;
};
template <class Stored>
using Wide = typename WideOf<Stored>::type;

template <class To, class From>
inline To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From), "the same bits");
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

inline float widen(float x) { return x; }
inline double widen(double x) { return x; }
inline float widen(BFloat16 x) { return bits_as<float>(uint32_t{x.bits} << 16); }

template <class Stored>
inline Stored narrow(Wide<Stored> x) {
  return x;
}
// To the nearest, ties to even; what is not a number stays so.
template <>
inline BFloat16 narrow<BFloat16>(float x) {
  const uint32_t bits = bits_as<uint32_t>(x);
  const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  return {static_cast<uint16_t>((bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : rounded)};
}

// A spike, 1 or 0, as a number. It is chosen, not converted: GCC vectorises only that.
template <class Stored>
inline Stored spike_as(bool fires) {
  return fires ? Stored{1} : Stored{0};
}

// The order of DTYPES in native.py.
enum DType : int32_t { FLOAT32, FLOAT64, BFLOAT16 };

// run(number) with a number of the dtype that the tensors hold.
template <class Run>
inline int with_dtype(int32_t dtype, const Run& run) {
  switch (dtype) {
    case FLOAT32: return run(float{});
    case FLOAT64: return run(double{});
    default: return run(BFloat16{});
  }
}
