// The ops of bits.py: spikes [rows, channels] to bits and back.
#include "bits.h"

#include <algorithm>
#include <vector>

#include "export.h"
#include "number.h"
#include "parallel.h"
#include "stream.h"

namespace {

constexpr int64_t WORTH_A_THREAD = 1 << 15;  // spikes

int64_t grain_of(int64_t channels) { return std::max<int64_t>(1, WORTH_A_THREAD / channels); }

template <class Stored>
void to_numbers(const uint8_t* __restrict fired, Stored* __restrict spikes, int64_t count) {
  for (int64_t i = 0; i < count; ++i) spikes[i] = narrow<Stored>(fired[i]);
}

template <class Stored>
void to_bytes(const Stored* __restrict spikes, uint8_t* __restrict fired, int64_t count) {
  for (int64_t i = 0; i < count; ++i) fired[i] = widen(spikes[i]) != 0;
}

}  // namespace

EXPORT int pack_bits(int32_t dtype, int64_t rows, int64_t channels, const void* spikes,
                     int64_t* bits) {
  return with_dtype(dtype, [&](auto number) {
    const auto* from = static_cast<const decltype(number)*>(spikes);
    return parallel_for(rows, grain_of(channels), [=](int64_t begin, int64_t end) {
      std::vector<uint8_t> fired(channels + BIT_SLACK);
      for (int64_t row = begin; row < end; ++row) {
        to_bytes(from + row * channels, fired.data(), channels);
        pack_row(fired.data(), channels, bits + row * words_of(channels));
      }
    });
  });
}

EXPORT int unpack_bits(int32_t dtype, int64_t rows, int64_t channels, const int64_t* bits,
                       void* spikes) {
  return with_dtype(dtype, [&](auto number) {
    using Stored = decltype(number);
    auto* to = static_cast<Stored*>(spikes);
    const bool large = is_large<Stored>(rows * channels);
    return parallel_for(rows, grain_of(channels), [=](int64_t begin, int64_t end) {
      std::vector<uint8_t> fired(channels + BIT_SLACK);
      std::vector<Stored> numbers(channels);
      for (int64_t row = begin; row < end; ++row) {
        unpack_row(bits + row * words_of(channels), channels, fired.data());
        to_numbers(fired.data(), numbers.data(), channels);
        store(to + row * channels, numbers.data(), channels, large);
      }
    });
  });
}

// How many bits are set in every `stride`-th row.
EXPORT int count_bits(int64_t rows, int64_t stride, int64_t words, const uint64_t* bits,
                      int64_t* count) {
  int64_t ones = 0;
  for (int64_t row = 0; row < rows; row += stride)
    for (int64_t i = 0; i < words; ++i) ones += __builtin_popcountll(bits[row * words + i]);
  *count = ones;
  return 0;
}
