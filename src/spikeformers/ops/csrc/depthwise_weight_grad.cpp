// Weight gradient of a depthwise convolution: each channel and kernel tap is a sum of products over
// all positions. A vector holds as many channels as it can, registers the taps of a kernel row.
//
// The sums of pieces are formed apart and then added up in their order: neither threads nor the
// width of vectors change what a channel sees.
#include "depthwise.h"
#include "export.h"
#include "parallel.h"

namespace {

template <class Input, class Stored, class Real = Wide<Stored>>
int weight_grad(const Input* x, const Stored* grad, Real* out, const Conv& conv) {
  const Pieces<Real> pieces(conv);
  const int64_t taps = pieces.taps(), width = conv.out_width;
  const auto sums = make_aligned<Vector<Real>>(pieces.count * taps);
  const auto walk = [&](int64_t begin, int64_t end) {
    const auto seen = make_aligned<Vector<Real>>(pieces.input_size());
    const auto received = make_aligned<Vector<Real>>(pieces.rows * width);
    for (int64_t index = begin; index < end; ++index) {
      const Piece piece(pieces, index);
      const int64_t start = (piece.image * conv.out_height + piece.first) * width;
      read_input(x, Frame<Real>{}, conv, piece, seen.get());
      read_row(grad, start, piece.rows() * width, conv, piece, received.get());
      const int64_t next = piece.start(conv) + step_behind(pieces, index);
      add_taps<Stored>({received.get(), width}, {seen.get(), pieces.pitch()}, piece.rows(), conv,
                       {grad + next, conv.channels}, sums.get() + index * taps);
    }
  };
  if (parallel_for(pieces.count, 1, walk)) return 1;
  add_pieces(sums.get(), pieces, taps, 0, taps, out);
  return 0;
}

}  // namespace

EXPORT int depthwise_weight_grad(int32_t dtype, const Conv* conv, const void* x, const void* grad,
                                 void* out) {
  return with_dtype(dtype, [&](auto number) {
    using Stored = decltype(number);
    return unless_out_of_memory([&] {
      return weight_grad(static_cast<const Stored*>(x), static_cast<const Stored*>(grad),
                         static_cast<Wide<Stored>*>(out), *conv);
    });
  });
}

EXPORT int spike_depthwise_weight_grad(int32_t dtype, const Conv* conv, const uint64_t* bits,
                                       const void* grad, void* out) {
  return with_dtype(dtype, [&](auto number) {
    using Stored = decltype(number);
    return unless_out_of_memory([&] {
      return weight_grad(bits, static_cast<const Stored*>(grad), static_cast<Wide<Stored>*>(out),
                         *conv);
    });
  });
}
