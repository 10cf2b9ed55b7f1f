// Where the spikes of each channel are: what the weight gradient of a convolution asks of the bits.
//
// With a stride, a kernel tap sees only inputs of one residue in each direction, its phase. Taken
// by themselves, the inputs and taps of a phase are a convolution without stride.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "conv.h"
#include "rows.h"

// One direction of one phase: its inputs `first`, `first` + stride, ..., and its kernel taps
// `phase`, `phase` + stride, ... Tap m takes input j to output j - m + shift. Outputs are padded to
// all those that a tap could reach: input j is seen by the last tap at place j, by the first one
// at place j + taps - 1.
struct Axis {
  int64_t phase, stride, taps, first, count, shift;

  Axis(int64_t size, int64_t phase_, const Conv& conv)
      : phase(phase_),
        stride(conv.stride),
        taps((conv.kernel - phase + stride - 1) / stride),
        shift((conv.padding - phase + stride - 1) / stride) {
    first = shift * stride + phase - conv.padding;
    count = std::max<int64_t>(0, (size - first + stride - 1) / stride);
  }
  int64_t padded() const { return count + taps - 1; }
  int64_t input(int64_t j) const { return first + j * stride; }
  int64_t tap_from_last(int64_t m) const { return phase + (taps - 1 - m) * stride; }
  // It may lie outside.
  int64_t output(int64_t place) const { return place - (taps - 1) + shift; }
};

// A phase, whose positions are cut into blocks of rows.
struct Phase {
  Axis vertical, horizontal;
  int64_t block_rows, blocks, taps;

  Phase(const Conv& conv, int64_t y, int64_t x, int64_t most_positions)
      : vertical(conv.height, y, conv),
        horizontal(conv.width, x, conv),
        block_rows(std::max<int64_t>(
            1, most_positions / std::max<int64_t>(1, horizontal.padded()))),
        blocks((conv.images * vertical.padded() + block_rows - 1) / block_rows),
        taps(vertical.taps * horizontal.taps) {}

  int64_t positions() const { return block_rows * horizontal.padded(); }  // of a block
  // Gradients that a block's spikes reach.
  int64_t places() const { return (block_rows + vertical.taps - 1) * horizontal.padded(); }
  int64_t tap_from_last(int64_t down, int64_t right, const Conv& conv) const {
    return vertical.tap_from_last(down) * conv.kernel + horizontal.tap_from_last(right);
  }
};

// Rows of bits become columns, in many squares [row][square] at once: halves change places, then
// quarters, and so on.
inline void transpose(uint64_t* rows, int64_t squares) {
  uint64_t low = 0x00000000ffffffff;
  for (int half = 32; half > 0; half /= 2, low ^= low << half)
    for (int64_t first = 0; first < 64; first += 2 * half)
      for (int64_t i = first * squares; i < (first + half) * squares; ++i) {
        uint64_t &upper = rows[i], &lower = rows[i + half * squares];
        const uint64_t change = (upper >> half ^ lower) & low;
        upper ^= change << half;
        lower ^= change;
      }
}

// The positions of the spikes of a block, one list for each channel.
struct SpikePositions {
  Aligned<uint32_t> indices;
  std::vector<uint32_t*> channels;  // where each list begins, and at last where it ends

  SpikePositions() = default;
  SpikePositions(const uint64_t* bits, const Conv& conv, const Phase& phase, int64_t block) {
    const int64_t words = conv.words(), squares = (phase.positions() + 63) / 64;
    std::vector<uint64_t> squared(64 * squares * words);  // [position % 64][position / 64][word]
    const int64_t spikes = read(bits, conv, phase, block, squares, squared.data());
    transpose(squared.data(), squares * words);
    indices = make_aligned<uint32_t>(spikes + SLACK);
    channels.reserve(conv.channels + 1);
    uint32_t* end = indices.get();
    for (int64_t c = 0; c < conv.channels; ++c) {
      const uint64_t* word = squared.data() + c % 64 * squares * words + c / 64;
      channels.push_back(end);
      for (int64_t i = 0; i < squares; ++i) end = append_set_bits(word[i * words], i * 64, end);
    }
    channels.push_back(end);
  }

 private:
  // Returns the number of spikes.
  static int64_t read(const uint64_t* bits, const Conv& conv, const Phase& phase, int64_t block,
                      int64_t squares, uint64_t* squared) {
    const Axis &vertical = phase.vertical, &horizontal = phase.horizontal;
    const int64_t words = conv.words();
    int64_t spikes = 0;
    for (int64_t r = 0; r < phase.block_rows; ++r) {
      const int64_t row = block * phase.block_rows + r;
      const int64_t image = row / vertical.padded();
      const int64_t j = row % vertical.padded() - (vertical.taps - 1);
      if (image >= conv.images || j < 0) continue;
      const uint64_t* line = bits + (image * conv.height + vertical.input(j)) * conv.width * words;
      for (int64_t x = 0; x < horizontal.count; ++x) {
        const int64_t position = r * horizontal.padded() + x;
        uint64_t* to = squared + (position % 64 * squares + position / 64) * words;
        for (int64_t w = 0; w < words; ++w) {
          to[w] = line[horizontal.input(x) * words + w];
          spikes += __builtin_popcountll(to[w]);
        }
      }
    }
    return spikes;
  }
};
