// Rows of spikes as bytes, 0 or 1, and as bits: channel c is bit c % 64 of word c / 64, see bits.py.
//
// Both functions take 64 spikes at a time: behind the last byte of a row there must be BIT_SLACK
// more that may be read or written.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#if defined(__AVX512BW__)
#include <immintrin.h>
#endif

constexpr int64_t WORD = 64, BIT_SLACK = WORD - 1;

inline int64_t words_of(int64_t channels) { return (channels + WORD - 1) / WORD; }

inline uint64_t pack_word(const uint8_t* spikes) {
#if defined(__AVX512BW__)
  const __m512i bytes = _mm512_loadu_si512(spikes);
  return _mm512_test_epi8_mask(bytes, bytes);
#else
  uint64_t word = 0;
  for (int i = 0; i < 8; ++i) {
    uint64_t eight;
    std::memcpy(&eight, spikes + 8 * i, 8);
    // The product brings the bit of byte k to place 56 + k.
    word |= eight * 0x0102040810204080 >> 56 << (8 * i);
  }
  return word;
#endif
}

inline void unpack_word(uint64_t word, uint8_t* spikes) {
#if defined(__AVX512BW__)
  _mm512_storeu_si512(spikes, _mm512_maskz_set1_epi8(word, 1));
#else
  for (int i = 0; i < 8; ++i) {
    // Byte k keeps bit k alone; adding 127 carries it, whichever it is, to the highest place.
    const uint64_t copies = (word >> (8 * i) & 0xff) * 0x0101010101010101;
    const uint64_t carried = (copies & 0x8040201008040201) + 0x7f7f7f7f7f7f7f7f;
    const uint64_t eight = carried >> 7 & 0x0101010101010101;
    std::memcpy(spikes + 8 * i, &eight, 8);
  }
#endif
}

inline void pack_row(const uint8_t* spikes, int64_t channels, int64_t* bits) {
  for (int64_t c = 0; c < channels; c += WORD) {
    const uint64_t behind = channels - c < WORD ? ~uint64_t{0} << (channels - c) : 0;
    bits[c / WORD] = static_cast<int64_t>(pack_word(spikes + c) & ~behind);
  }
}

inline void unpack_row(const int64_t* bits, int64_t channels, uint8_t* spikes) {
  for (int64_t c = 0; c < channels; c += WORD)
    unpack_word(static_cast<uint64_t>(bits[c / WORD]), spikes + c);
}

// Rows of bits one behind the other without gaps, and back; `joined` has a word more than it needs.
inline void join_rows(const int64_t* bits, int64_t rows, int64_t channels, uint64_t* joined) {
  const int64_t words = words_of(channels);
  std::fill_n(joined, words_of(rows * channels) + 1, 0);
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t i = 0; i < words; ++i) {
      const int64_t at = row * channels + i * WORD;
      const uint64_t word = static_cast<uint64_t>(bits[row * words + i]);
      joined[at / WORD] |= word << (at % WORD);
      joined[at / WORD + 1] |= word >> 1 >> (WORD - 1 - at % WORD);
    }
}

inline void split_rows(const uint64_t* joined, int64_t rows, int64_t channels, int64_t* bits) {
  const int64_t words = words_of(channels);
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t i = 0; i < words; ++i) {
      const int64_t at = row * channels + i * WORD, left = channels - i * WORD;
      const uint64_t word = joined[at / WORD] >> (at % WORD) |
                            joined[at / WORD + 1] << 1 << (WORD - 1 - at % WORD);
      const uint64_t behind = left < WORD ? ~uint64_t{0} << left : 0;
      bits[row * words + i] = static_cast<int64_t>(word & ~behind);
    }
}
