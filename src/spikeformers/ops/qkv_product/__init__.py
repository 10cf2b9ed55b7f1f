"""Products of binary q, k and v: what attention without a softmax computes."""

from spikeformers.ops.qkv_product.op import qkv_product, qkv_product_backward

__all__ = ["qkv_product", "qkv_product_backward"]
