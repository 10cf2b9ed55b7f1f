// What the kernels of depthwise convolutions share. Channels do not mix: a piece has as many of
// them as a vector, and some rows of an image, which are read together with their border.
#pragma once

#include <algorithm>
#include <cstdint>

#include "conv.h"
#include "vector.h"

// The output of a convolution in pieces. Where rows are cut depends on the shape alone.
template <class Real>
struct Pieces {
  static constexpr int64_t POSITIONS = 1024;  // about: few enough for the second cache

  const Conv& conv;
  int64_t groups, rows, chunks, count;

  explicit Pieces(const Conv& conv)
      : conv(conv),
        groups((conv.channels + LANES<Real> - 1) / LANES<Real>),
        rows(std::max<int64_t>(1, POSITIONS / std::max<int64_t>(1, conv.out_width))),
        chunks((conv.out_height + rows - 1) / rows),
        count(conv.images * chunks * groups) {}

  // How long a row of input is with its border, and how many vectors the input of a piece has.
  int64_t pitch() const { return conv.width + 2 * conv.padding; }
  int64_t input_size() const { return ((rows - 1) * conv.stride + conv.kernel) * pitch(); }
  int64_t taps() const { return conv.kernel * conv.kernel; }
};

// Rows `first` .. `last` of an image's output, for a vector of channels or the rest of them.
struct Piece {
  int64_t image, first, last, channel, channels;

  template <class Real>
  Piece(const Pieces<Real>& pieces, int64_t index)
      : image(index / pieces.groups / pieces.chunks),
        first(index / pieces.groups % pieces.chunks * pieces.rows),
        last(std::min(first + pieces.rows, pieces.conv.out_height)),
        channel(index % pieces.groups * LANES<Real>),
        channels(std::min(LANES<Real>, pieces.conv.channels - channel)) {}

  int64_t rows() const { return last - first; }

  // Where in the output it begins.
  int64_t start(const Conv& conv) const {
    return (image * conv.out_height + first) * conv.out_width * conv.channels + channel;
  }
};

// How far behind this piece the next one begins.
template <class Real>
int64_t step_behind(const Pieces<Real>& pieces, int64_t index) {
  return Piece(pieces, index + 1).start(pieces.conv) - Piece(pieces, index).start(pieces.conv);
}

// Lets memory bring a vector meanwhile. If it lies across two cache lines, the first one came with
// the channels in front.
template <bool is_output = false, class Stored>
void fetch(const Stored* vector) {
  __builtin_prefetch(vector + LANES<Wide<Stored>> - 1, is_output);
}
inline void fetch(const uint64_t*) {}  // bits of spikes: too few to wait for

// Reads the channels of a piece at some positions.
template <class Stored>
void read_row(const Stored* from, int64_t first, int64_t positions, const Conv& conv,
              const Piece& piece, Vector<Wide<Stored>>* to) {
  constexpr int64_t ahead = 16;
  from += first * conv.channels + piece.channel;
  for (int64_t i = 0; i < positions; ++i, from += conv.channels) {
    fetch(from + ahead * conv.channels);
    to[i] = load(from, piece.channels);
  }
}

// The same of spikes, which are bits: the channels of a piece lie in one word.
template <class Vector>
void read_row(const uint64_t* from, int64_t first, int64_t positions, const Conv& conv,
              const Piece& piece, Vector* to) {
  using Real = std::decay_t<decltype(Vector{}[0])>;
  from += first * conv.words() + piece.channel / 64;
  for (int64_t i = 0; i < positions; ++i, from += conv.words()) {
    const uint64_t bits = *from >> piece.channel % 64;
    Real spikes[LANES<Real>];
    for (int64_t lane = 0; lane < LANES<Real>; ++lane)
      spikes[lane] = spike_as<Real>(bits >> lane & 1);
    to[i] = load(spikes);
  }
}

// What a convolution sees instead of x: gain x + offset, within a border. Vectors [C]; without them
// it is x, within zeros.
template <class Real>
struct Frame {
  const Real *gain, *offset, *border;
};

// Reads the input of a piece, numbers or the bits of spikes.
template <class Input, class Real>
void read_input(const Input* x, const Frame<Real>& frame, const Conv& conv, const Piece& piece,
                Vector<Real>* to) {
  Vector<Real> gain = {}, offset = {}, border = {};
  if (frame.gain) {
    read_row(frame.gain, 0, 1, conv, piece, &gain);
    read_row(frame.offset, 0, 1, conv, piece, &offset);
    read_row(frame.border, 0, 1, conv, piece, &border);
  }
  const int64_t first = piece.first * conv.stride - conv.padding;
  const int64_t last = (piece.last - 1) * conv.stride - conv.padding + conv.kernel;
  for (int64_t row = first; row < last; ++row) {
    const bool is_border = row < 0 || row >= conv.height;
    to = std::fill_n(to, conv.padding + (is_border ? conv.width : 0), border);
    if (!is_border) {
      const int64_t start = (piece.image * conv.height + row) * conv.width;
      read_row(x, start, conv.width, conv, piece, to);
      if (frame.gain)
        for (int64_t i = 0; i < conv.width; ++i) to[i] = gain * to[i] + offset;
      to += conv.width;
    }
    to = std::fill_n(to, conv.padding, border);
  }
}

// Vectors row by row, and how many lie between the beginnings of two rows.
template <class Real>
struct Rows {
  const Vector<Real>* values;
  int64_t pitch;
};

// Positions that memory brings meanwhile, one behind the other.
template <class Stored>
struct Coming {
  const Stored* vector;
  int64_t step;

  void fetch_some(int64_t positions) {
    for (int64_t i = 0; i < positions; ++i, vector += step) fetch(vector);
  }
};

// Taps of a kernel row whose sums registers hold at once.
constexpr int64_t MOST_TAPS = 8;

// sums[tap] = sum over rows and columns of grad[row][column] x[row * stride][column * stride + tap]
template <class Stored, int taps, class Real = Wide<Stored>>
void add_products(Rows<Real> grad, Rows<Real> x, int64_t rows, const Conv& conv,
                  Coming<Stored>& next, Vector<Real>* sums) {
  Vector<Real> total[taps] = {};
  for (int64_t row = 0; row < rows; ++row) {
    next.fetch_some((conv.out_width + conv.kernel - 1) / conv.kernel);
    const Vector<Real>* received = grad.values + row * grad.pitch;
    const Vector<Real>* seen = x.values + row * conv.stride * x.pitch;
    for (int64_t column = 0; column < conv.out_width; ++column, seen += conv.stride)
      for (int tap = 0; tap < taps; ++tap) total[tap] += received[column] * seen[tap];
  }
  std::copy_n(total, taps, sums);
}

template <class Stored, class Real = Wide<Stored>>
using AddProducts = void (*)(Rows<Real>, Rows<Real>, int64_t, const Conv&, Coming<Stored>&,
                             Vector<Real>*);
template <class Stored>
AddProducts<Stored> add_products_of(int64_t taps) {
  constexpr AddProducts<Stored> known[MOST_TAPS] = {
      add_products<Stored, 1>, add_products<Stored, 2>, add_products<Stored, 3>,
      add_products<Stored, 4>, add_products<Stored, 5>, add_products<Stored, 6>,
      add_products<Stored, 7>, add_products<Stored, 8>};
  return known[taps - 1];
}

// Weight gradient [k][k] of some rows of output; in k passes, as many positions are fetched.
template <class Stored, class Real = Wide<Stored>>
void add_taps(Rows<Real> grad, Rows<Real> x, int64_t rows, const Conv& conv, Coming<Stored> next,
              Vector<Real>* sums) {
  for (int64_t i = 0; i < conv.kernel; ++i)
    for (int64_t j = 0; j < conv.kernel; j += MOST_TAPS) {
      const int64_t taps = std::min(MOST_TAPS, conv.kernel - j);
      const auto add = add_products_of<Stored>(taps);
      add(grad, {x.values + i * x.pitch + j, x.pitch}, rows, conv, next, sums);
      sums += taps;
    }
}

// out[c][i] = sum over the pieces with channel c of their sums[first + i], in order; each piece has
// `per_piece` of them.
template <class Real>
void add_pieces(const Vector<Real>* sums, const Pieces<Real>& pieces, int64_t per_piece,
                int64_t first, int64_t count, Real* out) {
  const Conv& conv = pieces.conv;
  std::fill_n(out, conv.channels * count, Real(0));
  for (int64_t chunk = 0; chunk < conv.images * pieces.chunks; ++chunk)
    for (int64_t c = 0; c < conv.channels; ++c) {
      const int64_t piece = chunk * pieces.groups + c / LANES<Real>;
      for (int64_t i = 0; i < count; ++i)
        out[c * count + i] += sums[piece * per_piece + first + i][c % LANES<Real>];
    }
}
