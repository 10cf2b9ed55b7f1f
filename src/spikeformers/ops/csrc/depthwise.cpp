// Depthwise convolutions with stride 1: of numbers, of the bits of spikes, and of gain x + offset
// within a border, with its gradient. What is convolved never is in memory as a whole: a piece of
// it is, in a cache.
//
// An output is a sum over the taps of a kernel, in their order at every instruction level.
#include "depthwise.h"
#include "export.h"
#include "parallel.h"

namespace {

// Outputs of a row whose sums registers hold at once; sides of images tend to be multiples of it.
constexpr int64_t COLUMNS = 7;

// out[column] = sum over taps of weight[i][j] x[i][column + j]
template <class Real>
void correlate(Rows<Real> x, const Vector<Real>* weight, int64_t kernel, Vector<Real>* out) {
  Vector<Real> total[COLUMNS] = {};
  for (int64_t i = 0; i < kernel; ++i, x.values += x.pitch)
    for (int64_t j = 0; j < kernel; ++j, ++weight)
      for (int64_t column = 0; column < COLUMNS; ++column)
        total[column] += *weight * x.values[column + j];
  std::copy_n(total, COLUMNS, out);
}

// Convolves a piece; see(y, at) gets each output, and where in the map it is.
template <class Real, class See>
void convolve(const Vector<Real>* x, const Vector<Real>* weight, const Pieces<Real>& pieces,
              const Piece& piece, const See& see) {
  const Conv& conv = pieces.conv;
  for (int64_t row = piece.first; row < piece.last; ++row, x += pieces.pitch())
    for (int64_t column = 0; column < conv.out_width; column += COLUMNS) {
      Vector<Real> y[COLUMNS];
      correlate<Real>({x + column, pieces.pitch()}, weight, conv.kernel, y);
      const int64_t position = (piece.image * conv.out_height + row) * conv.out_width + column;
      for (int64_t i = 0; i < std::min(COLUMNS, conv.out_width - column); ++i)
        see(y[i], (position + i) * conv.channels + piece.channel);
    }
}

// Room for the input of a piece. The last sums of a row may see what lies behind its end, but
// nobody sees these sums.
template <class Real>
auto room_for_input(const Pieces<Real>& pieces) {
  return make_aligned<Vector<Real>>(pieces.input_size() + COLUMNS);
}

template <class Input, class Stored, class Real = Wide<Stored>>
int forward(const Conv& conv, const Input* x, const Frame<Real>& frame, const Real* weight,
            Stored* out) {
  const Pieces<Real> pieces(conv);
  const bool large =
      is_large<Stored>(conv.images * conv.out_height * conv.out_width * conv.channels);
  return parallel_for(pieces.count, 1, [&](int64_t begin, int64_t end) {
    const auto seen = room_for_input(pieces), w = make_aligned<Vector<Real>>(pieces.taps());
    for (int64_t index = begin; index < end; ++index) {
      const Piece piece(pieces, index);
      const int64_t next = step_behind(pieces, index);
      read_row(weight, 0, pieces.taps(), conv, piece, w.get());
      read_input(x, frame, conv, piece, seen.get());
      convolve(seen.get(), w.get(), pieces, piece, [&](const Vector<Real>& y, int64_t at) {
        fetch(x + at + next);  // so it is if maps keep their size
        if (!large) fetch<true>(out + at + next);
        save(out + at, y, piece.channels, large);
      });
    }
  });
}

// The gradient of the map in the frame, and sums: the gradients of weights, gain and offset.
template <class Stored>
int backward(const Conv& conv, const Stored* x, const Frame<Wide<Stored>>& frame,
             const Wide<Stored>* weight, const Stored* grad, Stored* grad_inside,
             Wide<Stored>* grad_gain, Wide<Stored>* grad_offset, Wide<Stored>* grad_weight) {
  using Real = Wide<Stored>;
  const Pieces<Real> pieces(conv);
  const int64_t taps = pieces.taps(), pitch = pieces.pitch(), per_piece = taps + 2;
  const auto sums = make_aligned<Vector<Real>>(pieces.count * per_piece);
  const auto walk = [&](int64_t begin, int64_t end) {
    const auto seen = room_for_input(pieces), received = room_for_input(pieces);
    const auto mirrored = make_aligned<Vector<Real>>(taps);
    const Vector<Real>* const inside = received.get() + conv.padding * (pitch + 1);
    for (int64_t index = begin; index < end; ++index) {
      const Piece piece(pieces, index);
      const int64_t next = step_behind(pieces, index);
      Vector<Real>* const sum = sums.get() + index * per_piece;
      read_input(x, frame, conv, piece, seen.get());
      read_input(grad, Frame<Real>{}, conv, piece, received.get());
      add_taps<Stored>({inside, pitch}, {seen.get(), pitch}, piece.rows(), conv,
                       {x + piece.start(conv) + next, conv.channels}, sum);
      read_row(weight, 0, taps, conv, piece, mirrored.get());
      std::reverse(mirrored.get(), mirrored.get() + taps);
      Vector<Real> of_gain = {}, of_offset = {};
      convolve(received.get(), mirrored.get(), pieces, piece,
               [&](const Vector<Real>& g, int64_t at) {
                 of_gain += g * load(x + at, piece.channels);
                 of_offset += g;
                 fetch(grad + at + next);
                 fetch<true>(grad_inside + at + next);
                 save(grad_inside + at, g, piece.channels, false);
               });
      sum[taps] = of_gain, sum[taps + 1] = of_offset;
    }
  };
  if (parallel_for(pieces.count, 1, walk)) return 1;
  add_pieces(sums.get(), pieces, per_piece, 0, taps, grad_weight);
  add_pieces(sums.get(), pieces, per_piece, taps, 1, grad_gain);
  add_pieces(sums.get(), pieces, per_piece, taps + 1, 1, grad_offset);
  return 0;
}

}  // namespace

EXPORT int depthwise_conv(int32_t dtype, const Conv* conv, const void* x, const void* weight,
                          void* out) {
  return with_dtype(dtype, [&](auto number) {
    using Stored = decltype(number);
    using Real = Wide<Stored>;
    return unless_out_of_memory([&] {
      return forward(*conv, static_cast<const Stored*>(x), Frame<Real>{},
                     static_cast<const Real*>(weight), static_cast<Stored*>(out));
    });
  });
}

EXPORT int spike_depthwise_conv(int32_t dtype, const Conv* conv, const uint64_t* bits,
                                const void* weight, void* out) {
  return with_dtype(dtype, [&](auto number) {
    using Stored = decltype(number);
    using Real = Wide<Stored>;
    return unless_out_of_memory([&] {
      return forward(*conv, bits, Frame<Real>{}, static_cast<const Real*>(weight),
                     static_cast<Stored*>(out));
    });
  });
}

EXPORT int framed_depthwise(int32_t dtype, const Conv* conv, const void* x, const void* gain,
                            const void* offset, const void* border, const void* weight, void* out) {
  return with_dtype(dtype, [&](auto number) {
    using Stored = decltype(number);
    const auto vector = [](const void* of) { return static_cast<const Wide<Stored>*>(of); };
    return unless_out_of_memory([&] {
      return forward(*conv, static_cast<const Stored*>(x),
                     {vector(gain), vector(offset), vector(border)}, vector(weight),
                     static_cast<Stored*>(out));
    });
  });
}

EXPORT int framed_depthwise_backward(int32_t dtype, const Conv* conv, const void* x,
                                     const void* gain, const void* offset, const void* border,
                                     const void* weight, const void* grad, void* grad_inside,
                                     void* grad_gain, void* grad_offset, void* grad_weight) {
  return with_dtype(dtype, [&](auto number) {
    using Stored = decltype(number);
    using Real = Wide<Stored>;
    const auto vector = [](const void* of) { return static_cast<const Real*>(of); };
    return unless_out_of_memory([&] {
      return backward(*conv, static_cast<const Stored*>(x),
                      {vector(gain), vector(offset), vector(border)}, vector(weight),
                      static_cast<const Stored*>(grad), static_cast<Stored*>(grad_inside),
                      static_cast<Real*>(grad_gain), static_cast<Real*>(grad_offset),
                      static_cast<Real*>(grad_weight));
    });
  });
}
