"""Visual Transformers (Wu et al. 2020, arXiv:2006.03677): a few semantic tokens instead of patches.

A ResNet without its last stage gives a map X. Each module pools X into l tokens T by spatial attention, relates the
tokens by a transformer, and projects them back onto the map. The equations' numbers are those of the paper as published
(ICCV 2021, "Where Do Transformers Really Belong in Vision Models?").

Shapes: `n` images, `h w` map, `c` channels of map and tokens, `l` tokens, `e` width of queries and keys.
"""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Key

from vit_jax.models.checks import check_positive
from vit_jax.models.features import Features, of_map
from vit_jax.models.naming import Naming
from vit_jax.models.resnet import ResNet
from vit_jax.ops.dropout import drop_path

# Blocks of each stage; whether they are bottlenecks; modules; MLP width. Wu et al. 2020, s. 4: the modules replace the
# blocks of stage 5 one for one, and work on stage 4's 256 or 1024 channels. The MLP's width is ours, fitted to the
# counts of tables 2, 7 and 8. In VT-R18 (11.7 M parameters, 1579 M multiply-adds) a module has some 4.3 M parameters
# for some 88 M multiply-adds: 20 for each parameter, so nearly all of them act on the 16 tokens and not on the map's
# 196 positions. With W_R, W_Q and W_K in c x c, as the text has them, that leaves an MLP of 256 -> 8192 -> 256. At 1024
# channels W_Q in c x c would alone cost more than the published stage: queries and keys are 256 wide there, too. The
# ablations in tables 5 and 7 show that the authors' modules spread their parameters otherwise, over tokenizers and
# projectors as well, for which the text gives no sizes.
SIZES: dict[str, tuple[tuple[int, ...], bool, int, int]] = {
    "R18": ((2, 2, 2), False, 2, 8192),
    "R34": ((3, 4, 6), False, 3, 8192),
    "R50": ((3, 4, 6), True, 3, 1152),
    "R101": ((3, 4, 23), True, 3, 1152),
}


def table() -> dict[str, dict[str, Any]]:
    """The fields of each VT-ResNet of the paper."""
    return {
        name: {"stage_sizes": stages, "bottleneck": bottleneck, "modules": modules, "mlp_dim": mlp_dim}
        for name, (stages, bottleneck, modules, mlp_dim) in SIZES.items()
    }


def linear(features: int, dtype: str, name: str) -> nn.Dense:
    """A weight of the paper's equations: none has a bias."""
    return nn.Dense(features, use_bias=False, dtype=dtype, name=name)


def pool(
    x: Float[Array, "n h w c"], logits: Float[Array, "n h w l"]
) -> tuple[Float[Array, "n l c"], Float[Array, "n h w l"]]:
    """Tokens as weighted means of the map's positions, and the weights: softmax over h and w, in float32."""
    weights = nn.softmax(logits.astype(jnp.float32), axis=(1, 2))
    return jnp.einsum("nhwl,nhwc->nlc", weights.astype(x.dtype), x), weights


class FilterTokenizer(nn.Module):
    """T = softmax_hw(X W_A)^T X (eq. 1): one learned filter for each token. Sows the weights as `tokenizer`."""

    tokens: int
    dtype: str

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n l c"]:
        tokens, weights = pool(x, linear(self.tokens, self.dtype, "filter")(x))
        self.sow("intermediates", "tokenizer", weights)
        return tokens


class RecurrentTokenizer(nn.Module):
    """T = softmax_hw(X W_R)^T X with W_R = T_in W (eq. 2): the tokens before, as queries, find the new ones.

    The logits are divided by sqrt(c), as in Vaswani et al. 2017, arXiv:1706.03762, s. 3.2.1. Sows the weights as
    `tokenizer`.
    """

    dtype: str

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], tokens: Float[Array, "n l c"]) -> Float[Array, "n l c"]:
        c = x.shape[-1]
        query = linear(c, self.dtype, "query")(tokens)
        tokens, weights = pool(x, jnp.einsum("nhwc,nlc->nhwl", x, query).astype(jnp.float32) / c**0.5)
        self.sow("intermediates", "tokenizer", weights)
        return tokens


class TokenTransformer(nn.Module):
    """T' = T + softmax_l((T K)(T Q)^T) T, then T' + relu(T' F_1) F_2 (eq. 3, 4): one head, no values, no output matrix.

    Two departures, both Vaswani et al.'s: logits are divided by sqrt(e), and each branch reads normalised tokens, which
    the equations leave out, though the text speaks of a standard transformer. Sows the probabilities [n 1 l l] as
    `attention` and the result as `tokens`, and lets gradients be taken with respect to both (`perturb`).
    """

    key_width: int
    mlp_dim: int
    dtype: str

    @nn.compact
    def __call__(
        self, tokens: Float[Array, "n l c"], rng: Key[Array, ""], drop_rate: float, *, train: bool
    ) -> Float[Array, "n l c"]:
        def residual(y: Float[Array, "n l c"], branch: int) -> Float[Array, "n l c"]:
            return drop_path(y, jnp.float32(drop_rate), jax.random.fold_in(rng, branch)) if train and drop_rate else y

        y = nn.LayerNorm(dtype=self.dtype, name="norm1")(tokens)
        q, k = (linear(self.key_width, self.dtype, name)(y) for name in ("query", "key"))
        logits = jnp.einsum("nle,nme->nlm", q, k).astype(jnp.float32) / self.key_width**0.5
        attention = nn.softmax(logits)[:, None]
        self.sow("intermediates", "attention", attention)
        attention = self.perturb("attention", attention)[:, 0]
        tokens = tokens + residual(jnp.einsum("nlm,nmc->nlc", attention.astype(y.dtype), y), 0)

        y = nn.LayerNorm(dtype=self.dtype, name="norm2")(tokens)
        y = nn.relu(linear(self.mlp_dim, self.dtype, "mlp1")(y))
        tokens = tokens + residual(linear(tokens.shape[-1], self.dtype, "mlp2")(y), 1)
        self.sow("intermediates", "tokens", tokens)
        return self.perturb("tokens", tokens)


class Projector(nn.Module):
    """X + softmax_l((X W_Q)(T W_K)^T) T (eq. 5): each position of the map asks the tokens. Logits over sqrt(e).

    Sows the probabilities [n h w l] as `projector`.
    """

    key_width: int
    dtype: str

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], tokens: Float[Array, "n l c"]) -> Float[Array, "n h w c"]:
        q = linear(self.key_width, self.dtype, "query")(x)
        k = linear(self.key_width, self.dtype, "key")(tokens)
        logits = jnp.einsum("nhwe,nle->nhwl", q, k).astype(jnp.float32) / self.key_width**0.5
        weights = nn.softmax(logits)
        self.sow("intermediates", "projector", weights)
        return x + jnp.einsum("nhwl,nlc->nhwc", weights.astype(x.dtype), tokens)


class VisualTransformer(ResNet):
    """A ResNet whose last stage is token-based: images [n H W c] to logits [n k]; its fields are the group `model`.

    The first module's tokenizer is filter-based, those of the others are recurrent. The head reads the mean of the last
    module's tokens, so that a projector stands between modules only: nothing would read the map behind the last one.

    Sows in the collection `intermediates`, for each module: `tokens` [n l c], `tokenizer` [n h w l] (which positions
    make a token), `attention` [n 1 l l] and `projector` [n h w l] (which tokens a position receives).
    """

    NAMING: ClassVar[Naming] = Naming(
        layers=(*ResNet.NAMING.layers, r"(?:tokenizer|transformer|projector)(\d+)/")  # behind the ResNet
    )

    modules: int = 2
    tokens: int = 16
    key_width: int = 256  # of queries and keys, in the transformer and the projector
    mlp_dim: int = 8192
    projector: bool = True

    def check(self, image_shape: tuple[int, int, int]) -> None:
        """Raises `UserError` if the fields do not fit each other; images of any shape do."""
        check_positive(self, "modules", "tokens", "key_width", "mlp_dim")
        super().check(image_shape)

    @property
    def depth(self) -> int:
        """How many blocks and modules stochastic depth counts."""
        return super().depth + self.modules

    def summarise(self, x: Float[Array, "n h w c"], rng: Key[Array, ""], *, train: bool) -> Float[Array, "n c"]:
        """The mean token, after all modules."""
        return self.last_features(x, rng, train=train).prefix.mean(axis=1)

    def last_features(self, x: Float[Array, "n h w c"], rng: Key[Array, ""], *, train: bool) -> Features:
        """The tokens after all modules as prefix, and the map that the last of them reads as patches."""
        for i in range(self.modules):
            if i == 0:
                tokens = FilterTokenizer(self.tokens, self.dtype, name="tokenizer1")(x)
            else:
                x = Projector(self.key_width, self.dtype, name=f"projector{i}")(x, tokens) if self.projector else x
                tokens = RecurrentTokenizer(self.dtype, name=f"tokenizer{i + 1}")(x, tokens)
            transformer = TokenTransformer(self.key_width, self.mlp_dim, self.dtype, name=f"transformer{i + 1}")
            rate = self.drop_rate(self.depth - self.modules + i)
            tokens = transformer(tokens, jax.random.fold_in(rng, i), rate, train=train)
        return of_map(x).replace(prefix=nn.LayerNorm(dtype=self.dtype, name="norm_tokens")(tokens))
