// Sums of rows: what is left of a convolution, and of its weight gradient, when inputs are spikes.
//
// A panel is some columns of a matrix, row by row without gaps, its rows as long as registers can
// hold a sum. Rows are equally long at every instruction level, and a sum takes them in the order
// of the list: each element sees the same additions everywhere.
#pragma once

#include <cstdint>
#include <memory>
#include <new>

#if defined(__AVX512F__)
constexpr int VECTOR_BYTES = 64;
#elif defined(__AVX2__)
constexpr int VECTOR_BYTES = 32;
#else
constexpr int VECTOR_BYTES = 16;
#endif

// Bytes of a row; a last panel with few columns has narrow rows.
constexpr int WIDE_ROW = 256, NARROW_ROW = 128;
template <class Real>
constexpr int64_t wide_columns = WIDE_ROW / sizeof(Real);

template <class Real>
struct VectorOf {
  typedef Real type __attribute__((vector_size(VECTOR_BYTES), may_alias));
};

// to = from + the rows `index` .. `end` of the panel at `base`. An address is a number here,
// because those of convolutions begin with rows that lie in front of the panel and are never read.
template <int row_bytes, class Real>
inline void add_rows(uintptr_t base, const uint32_t* index, const uint32_t* end, const Real* from,
                     Real* to) {
  using Vector = typename VectorOf<Real>::type;
  constexpr int part = row_bytes < 8 * VECTOR_BYTES ? row_bytes : 8 * VECTOR_BYTES;
  constexpr int vectors = part / VECTOR_BYTES, numbers = part / sizeof(Real);
  for (int first = 0; first < row_bytes; first += part, from += numbers, to += numbers) {
    Vector total[vectors];
    for (int i = 0; i < vectors; ++i) total[i] = reinterpret_cast<const Vector*>(from)[i];
    for (const uint32_t* at = index; at != end; ++at) {
      const uintptr_t row = base + uintptr_t{*at} * row_bytes + first;
      for (int i = 0; i < vectors; ++i) total[i] += reinterpret_cast<const Vector*>(row)[i];
    }
    for (int i = 0; i < vectors; ++i) reinterpret_cast<Vector*>(to)[i] = total[i];
  }
}

template <int row_bytes, class Real>
inline void add_rows(uintptr_t base, const uint32_t* index, const uint32_t* end, Real* sum) {
  add_rows<row_bytes>(base, index, end, sum, sum);
}

// Appends first + b for each set bit b, in ascending order, and returns the new end. Eight are
// written at a time, to mispredict fewer branches: up to `SLACK` values behind the end are lost.
constexpr int SLACK = 7;
inline uint32_t* append_set_bits(uint64_t word, uint32_t first, uint32_t* end) {
  uint32_t* const last = end + __builtin_popcountll(word);
  for (; end < last; end += 8)
    for (int i = 0; i < 8; ++i, word &= word - 1)
      end[i] = first + __builtin_ctzll(word | uint64_t{1} << 63);
  return last;
}

// Memory without initial values, aligned as rows are.
struct FreeAligned {
  void operator()(void* memory) const { ::operator delete(memory, std::align_val_t(WIDE_ROW)); }
};
template <class T>
using Aligned = std::unique_ptr<T[], FreeAligned>;
template <class T>
Aligned<T> make_aligned(int64_t count) {
  return Aligned<T>(static_cast<T*>(::operator new(count * sizeof(T), std::align_val_t(WIDE_ROW))));
}

// Runs a kernel; returns 1 if it found no memory to work in, which no exception may say to Python.
template <class Run>
int unless_out_of_memory(const Run& run) {
  try {
    return run();
  } catch (const std::bad_alloc&) {
    return 1;
  }
}
