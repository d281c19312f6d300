"""EVA-02 over timm's network: learned positions and rotary ones, a SwiGLU, LayerNorms within attention and MLP."""

from functools import partial

from timm.models.eva import Eva
from torch import Tensor, nn

from ...pretrain.common.card import Card
from ...pretrain.common.errors import UserError
from .base import FrozenEncoder, make_buffers


class EvaEncoder(FrozenEncoder):
    """An EVA-02. Its image vector: the normed class token, or the norm of the mean of the patches (`mean_norm`).

    strides, widths: stride and channels of each block's map, the same for all; width: of the image vector.
    """

    network, beside = "eva", ()

    def __init__(self, card: Card):
        super().__init__(card)
        if card.heads is None or card.dim % card.heads or card.dim // card.heads % 4 or card.act != "swiglu":
            facts = f"{card.heads} heads of {card.dim}, act={card.act}"
            raise UserError(f"no such EVA-02 is there ({facts}): its MLP is a swiglu, heads are multiples of 4 wide")
        self.count, self.width = card.depth, card.dim
        self.strides, self.widths = [card.patch] * card.depth, [card.dim] * card.depth
        pooled = card.readout == "mean_norm"
        self.eva = Eva(
            img_size=card.grid * card.patch,
            patch_size=card.patch,
            num_classes=0,
            global_pool="avg" if pooled else "token",
            embed_dim=card.dim,
            depth=card.depth,
            num_heads=card.heads,
            qkv_bias=card.qkv_bias,
            mlp_ratio=card.mlp_ratio,
            swiglu_mlp=True,
            scale_mlp="mlp" in card.inner_norms,
            scale_attn_inner="attention" in card.inner_norms,
            norm_layer=partial(nn.LayerNorm, eps=card.norm_eps),
            init_values=1.0 if card.layer_scale else None,
            use_rot_pos_emb=True,
            use_post_transformer_norm=card.final_norm,
            use_fc_norm=pooled,
            dynamic_img_size=True,
            ref_feat_shape=(card.rope_grid, card.rope_grid),
        )
        self.eval().requires_grad_(False)

    def assign(self, weights: dict[str, Tensor]) -> None:
        super().assign(weights)
        make_buffers(self.eva, next(iter(weights.values())).device)

    def pos_rule(self, size: tuple[int, int]) -> str:
        """How learned positions are made for an image of (H, W) pixels; those of the rotation are computed."""
        return self.card.pos_resize

    def outputs(self, images: Tensor, blocks: list[int]) -> dict[int, Tensor]:
        """Raw outputs [B, 1 + h*w, D] of the given blocks (0-based)."""
        if min(images.shape[-2:]) < self.card.patch:
            h, w = images.shape[-2:]
            raise UserError(f"a {h}x{w} image is smaller than a patch ({self.card.patch})")
        x, rope = self.eva._pos_embed(self.eva.patch_embed.proj(images).permute(0, 2, 3, 1))
        out = {}
        for i, block in enumerate(self.eva.blocks[: max(blocks) + 1]):
            x = block(x, rope=rope)
            if i in blocks:
                out[i] = x
        return out

    def normed(self, tokens: Tensor, block: int) -> Tensor:
        """Tokens through the final norm, where there is one."""
        return self.eva.norm(tokens)

    def patch_map(self, tokens: Tensor, images: Tensor) -> Tensor:
        """Tokens [B, 1 + h*w, D] of these images -> [B, D, h, w]"""
        grid = tuple(side // self.card.patch for side in images.shape[-2:])
        return tokens[:, 1:].transpose(1, 2).unflatten(2, grid)

    def image_vector(self, raw: Tensor) -> Tensor:
        """Raw tokens of the last block [B, 1 + h*w, D] -> [B, D]"""
        return self.eva.forward_head(self.eva.norm(raw), pre_logits=True)
