"""The shape of a model, under the names that Hugging Face's Llama-family config.json gives its fields."""

from dataclasses import asdict, dataclass, replace
from typing import Any


@dataclass(frozen=True)
class GPTConfig:
    """Shape of a Llama-family decoder.

    vocab_size 0 means "as many as the tokenizer has" and must be filled in (`with_vocab`) before building.
    num_key_value_heads: heads of keys and values; fewer than num_attention_heads is grouped-query attention.
    attention_bias: biases on the q, k and v projections; attention_output_bias: on the output projection.
    qk_norm: RMS norm on every head's queries and keys before the rotation (Qwen3).
    dropout: on the residual branches and embeddings; belongs to a training run, so it is not in config.json.
    Raises ValueError on shapes that cannot be built.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    max_position_embeddings: int  # longest sequence, in tokens
    head_dim: int = 0  # 0: hidden_size / num_attention_heads
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    attention_output_bias: bool = False
    qk_norm: bool = False
    initializer_range: float = 0.02
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.head_dim == 0:
            if self.hidden_size % self.num_attention_heads:
                raise ValueError(
                    f"model: hidden_size {self.hidden_size} is not divisible by "
                    f"num_attention_heads {self.num_attention_heads}; give head_dim"
                )
            object.__setattr__(self, "head_dim", self.hidden_size // self.num_attention_heads)
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"model: num_attention_heads {self.num_attention_heads} is not a multiple of "
                f"num_key_value_heads {self.num_key_value_heads}"
            )
        if self.head_dim % 2:
            raise ValueError(f"model: head_dim must be even for rotary positions, got {self.head_dim}")
        for name in ("hidden_size", "intermediate_size", "num_hidden_layers", "max_position_embeddings"):
            if getattr(self, name) < 1:
                raise ValueError(f"model: {name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"model: dropout must lie in [0, 1), got {self.dropout}")

    def with_vocab(self, size: int) -> "GPTConfig":
        """The same shape for a tokenizer of `size` pieces; a larger given vocab_size is kept (padding rows).

        Raises ValueError if the given vocab_size is too small for the tokenizer.
        """
        if 0 < self.vocab_size < size:
            raise ValueError(
                f"model: vocab_size {self.vocab_size} is smaller than the tokenizer's {size} pieces; "
                f"set model.vocab_size=0 to follow the tokenizer, or train one with "
                f"tokenizer.vocab_size={self.vocab_size}"
            )
        return replace(self, vocab_size=max(self.vocab_size, size))

    def num_parameters(self) -> int:
        """Parameters of CausalLM(config), counted by formula; tests compare with the built model."""
        d, head = self.hidden_size, self.head_dim
        queries, keys = self.num_attention_heads * head, self.num_key_value_heads * head
        attention = d * queries + 2 * d * keys + queries * d
        attention += (queries + 2 * keys) * self.attention_bias + d * self.attention_output_bias
        attention += 2 * head * self.qk_norm
        layer = attention + 3 * d * self.intermediate_size + 2 * d
        embeddings = self.vocab_size * d * (1 if self.tie_word_embeddings else 2)
        return embeddings + self.num_hidden_layers * layer + d

    def flops_per_token(self, context: int, *, frozen: bool = False) -> int:
        """Training FLOPs per token: 6 per parameter used in a matmul + 12·L·d·T for attention over T = context.

        frozen: 4 per parameter, as no gradient of weights is computed. The input embedding is a look-up and is not
        counted; a tied output matrix is. Source: Kaplan et al. 2020, section 2.1; Chowdhery et al. 2022 (PaLM),
        appendix B.
        """
        look_up = 0 if self.tie_word_embeddings else self.vocab_size * self.hidden_size
        width = self.num_attention_heads * self.head_dim
        return (4 if frozen else 6) * (self.num_parameters() - look_up) + 12 * self.num_hidden_layers * width * context

    def to_hf(self, architecture: str) -> dict[str, Any]:
        """config.json of the Hugging Face architecture that has this shape.

        architecture: "CausalLM" or "SequenceClassification".
        Raises ValueError for a combination that no Llama-family architecture has.
        """
        model_type = self._model_type()
        fields = asdict(self)
        for ours in ("qk_norm", "attention_output_bias", "dropout"):
            fields.pop(ours)
        if model_type == "qwen2":  # its biases are fixed by the architecture, not by a field
            fields.pop("attention_bias")
        name = {"llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3"}[model_type]
        fields["rope_parameters"] = {"rope_type": "default", "rope_theta": self.rope_theta}
        return {
            "model_type": model_type,
            "architectures": [f"{name}For{architecture}"],
            "hidden_act": "silu",
            **fields,
            "torch_dtype": "float32",
        }

    def _model_type(self) -> str:
        if self.qk_norm and self.attention_bias == self.attention_output_bias:
            return "qwen3"
        if not self.qk_norm and self.attention_bias == self.attention_output_bias:
            return "llama"
        if not self.qk_norm and self.attention_bias:
            return "qwen2"
        raise ValueError(
            "model: no Hugging Face architecture has qk_norm="
            f"{self.qk_norm}, attention_bias={self.attention_bias}, "
            f"attention_output_bias={self.attention_output_bias}"
        )

    @classmethod
    def from_hf(cls, fields: dict[str, Any]) -> "GPTConfig":
        """The shape that a Hugging Face config.json describes.

        Raises ValueError naming a feature that this decoder does not have, never ignores one.
        """
        model_type = fields.get("model_type")
        if model_type not in ("llama", "mistral", "qwen2", "qwen3"):
            raise ValueError(f"config.json: model_type {model_type!r}; known: llama, mistral, qwen2, qwen3")
        rope = fields.get("rope_parameters") or {}
        scaling = fields.get("rope_scaling") or {}
        kinds = {rope.get("rope_type", "default"), scaling.get("rope_type", scaling.get("type", "default"))}
        window = fields.get("sliding_window") if fields.get("use_sliding_window", True) else None
        refused = {
            "rope scaling": kinds - {"default"},
            "hidden_act other than silu": fields.get("hidden_act", "silu") != "silu",
            "mlp_bias": fields.get("mlp_bias", False),
            "sliding_window shorter than the context": bool(window)
            and window < fields["max_position_embeddings"]
            and model_type != "llama",
        }
        for feature, present in refused.items():
            if present:
                raise ValueError(f"config.json: {feature} is not supported ({model_type})")
        bias = bool(fields.get("attention_bias", False))
        heads = fields["num_attention_heads"]
        return cls(
            vocab_size=fields["vocab_size"],
            hidden_size=fields["hidden_size"],
            intermediate_size=fields["intermediate_size"],
            num_hidden_layers=fields["num_hidden_layers"],
            num_attention_heads=heads,
            num_key_value_heads=fields.get("num_key_value_heads") or heads,
            max_position_embeddings=fields["max_position_embeddings"],
            head_dim=fields.get("head_dim") or 0,
            rms_norm_eps=fields.get("rms_norm_eps", 1e-6),
            rope_theta=fields.get("rope_theta") or rope.get("rope_theta", 10000.0),
            tie_word_embeddings=fields.get("tie_word_embeddings", False),
            attention_bias=bias or model_type == "qwen2",
            attention_output_bias=bias and model_type != "qwen2",
            qk_norm=model_type == "qwen3",
            initializer_range=fields.get("initializer_range", 0.02),
        )
