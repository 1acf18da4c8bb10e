"""The shape of a model, with the field names of Hugging Face's Llama-family config.json."""

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from components.models import hf


@dataclass(frozen=True)
class GPTConfig:
    """Shape of a Llama-family decoder, or of GPT-2 (norm "layer", positions "learned" and mlp "gelu").

    vocab_size 0 means the tokenizer's, which `with_vocab` must fill in before the model is built.
    num_key_value_heads: heads of keys and values; fewer than num_attention_heads is grouped-query attention.
    attention_bias: biases on the q, k and v projections; attention_output_bias: on the output projection.
    qk_norm: RMS norm on every head's queries and keys before the rotation (Qwen3).
    norm "layer": LayerNorm with a bias; rms_norm_eps is the epsilon of either. mlp "gelu": tanh approximation, biases.
    rope_scaling: kind linear or llama3, with the fields that config.json has for it; None: no scaling.
    sliding_window: tokens that a token sees in layers max_window_layers and above. Attention here is never windowed, so
    a window must be no shorter than the run's longest sequence. model_type: Hugging Face's name, if a shape has two.
    dropout: on the residual branches and embeddings; context: tokens of the longest sequence, 0: the number of the
    model's positions; unused_ids: ids without a token in the tokenizer (see heads.Vocabulary). These three are
    settings of a run, so they are not in config.json.
    Raises ValueError for shapes that cannot be built.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    max_position_embeddings: int  # longest sequence that the model has positions for, in tokens
    head_dim: int = 0  # 0: hidden_size / num_attention_heads
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    attention_output_bias: bool = False
    qk_norm: bool = False
    initializer_range: float = 0.02
    norm: Literal["rms", "layer"] = "rms"
    positions: Literal["rotary", "learned"] = "rotary"
    mlp: Literal["swiglu", "gelu"] = "swiglu"
    rope_scaling: dict[str, Any] | None = None
    sliding_window: int | None = None
    max_window_layers: int = 0
    model_type: str = ""
    dropout: float = 0.0
    context: int = 0
    unused_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name, least in (("vocab_size", 0), ("num_attention_heads", 1), ("num_key_value_heads", 1), ("head_dim", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"model: {name} must be at least {least}, got {getattr(self, name)}")
        if self.head_dim == 0:
            if self.hidden_size % self.num_attention_heads:
                raise ValueError(
                    f"model: hidden_size {self.hidden_size} is not divisible by "
                    f"num_attention_heads {self.num_attention_heads}; set head_dim"
                )
            object.__setattr__(self, "head_dim", self.hidden_size // self.num_attention_heads)
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"model: num_attention_heads {self.num_attention_heads} is not a multiple of "
                f"num_key_value_heads {self.num_key_value_heads}"
            )
        if self.rope_scaling is not None:
            object.__setattr__(self, "rope_scaling", hf.checked_scaling(dict(self.rope_scaling)))
        if self.head_dim % 2 and self.positions == "rotary":
            raise ValueError(f"model: head_dim must be even for rotary positions, got {self.head_dim}")
        for name in ("hidden_size", "intermediate_size", "num_hidden_layers", "max_position_embeddings"):
            if getattr(self, name) < 1:
                raise ValueError(f"model: {name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"model: dropout must be in [0, 1), got {self.dropout}")
        if not 0 <= self.context <= self.max_position_embeddings:
            raise ValueError(
                f"context={self.context}: the model has {self.max_position_embeddings} positions "
                "(max_position_embeddings); set a context from 1 to that number, or null for all of them"
            )
        object.__setattr__(self, "unused_ids", tuple(self.unused_ids))
        if any(not 0 <= i < self.vocab_size for i in self.unused_ids):
            raise ValueError(f"model: unused_ids must be from 0 to {self.vocab_size - 1}, got {self.unused_ids}")
        if self.sliding_window is not None and self.sliding_window < self.longest:
            raise ValueError(
                f"model: a sliding_window of {self.sliding_window} tokens is shorter than the context of "
                f"{self.longest}, and attention here is never windowed; set context={self.sliding_window}"
            )

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence of this run."""
        return self.context or self.max_position_embeddings

    def with_vocab(self, size: int) -> "GPTConfig":
        """The same shape for a tokenizer of `size` tokens; a larger vocab_size is kept (padding rows).

        Raises ValueError if vocab_size is set and too small for the tokenizer.
        """
        if 0 < self.vocab_size < size:
            raise ValueError(
                f"model: vocab_size {self.vocab_size} is smaller than the tokenizer's {size} tokens; "
                f"set model.vocab_size=0 to use the tokenizer's size, or train a tokenizer with "
                f"tokenizer.vocab_size={self.vocab_size}"
            )
        return replace(self, vocab_size=max(self.vocab_size, size))

    def num_parameters(self, head: str = "lm_head") -> int:
        """Parameters of a CausalLM of this shape, or with head="score" of a ScalarModel, whose head is one output with
        a bias; by formula, which tests compare with the built model."""
        layer = sum(size for step in self.layer_weights() for size in step.values())
        matrices = 1 if head == "score" or self.tie_word_embeddings else 2
        rows = matrices * self.vocab_size + (self.max_position_embeddings if self.positions == "learned" else 0)
        trunk = rows * self.hidden_size + self.num_hidden_layers * layer + sum(self.norm_weights("norm").values())
        return trunk + (self.hidden_size + 1 if head == "score" else 0)

    def projections(self) -> dict[str, tuple[int, int]]:
        """(outputs, inputs) of a layer's projections."""
        d, width = self.hidden_size, self.intermediate_size
        queries = self.num_attention_heads * self.head_dim
        keys = self.num_key_value_heads * self.head_dim
        gate = {"gate_proj": (width, d)} if self.mlp == "swiglu" else {}
        return {
            "q_proj": (queries, d),
            "k_proj": (keys, d),
            "v_proj": (keys, d),
            "o_proj": (d, queries),
            **gate,
            "up_proj": (width, d),
            "down_proj": (d, width),
        }

    def norm_weights(self, name: str) -> dict[str, int]:
        """Parameters of a norm of hidden states, by the weight's name."""
        both = ("weight", "bias") if self.norm == "layer" else ("weight",)
        return {f"{name}.{own}": self.hidden_size for own in both}

    def layer_weights(self) -> list[dict[str, int]]:
        """Parameters of a layer by the weight's name, in the order of the forward pass: norm; q, k, v; o; norm; gate,
        up; down. Those in one table read the same input."""

        def weights(module: str, *names: str, bias: bool) -> dict[str, int]:
            shapes = {f"{module}.{name}": shape for name, shape in self.projections().items() if name in names}
            sizes = {f"{name}.weight": outputs * inputs for name, (outputs, inputs) in shapes.items()}
            return sizes | ({f"{name}.bias": outputs for name, (outputs, _) in shapes.items()} if bias else {})

        heads = {f"self_attn.{name}_norm.weight": self.head_dim for name in "qk"} if self.qk_norm else {}
        return [
            self.norm_weights("input_layernorm"),
            weights("self_attn", "q_proj", "k_proj", "v_proj", bias=self.attention_bias) | heads,
            weights("self_attn", "o_proj", bias=self.attention_output_bias),
            self.norm_weights("post_attention_layernorm"),
            weights("mlp", "gate_proj", "up_proj", bias=self.mlp == "gelu"),
            weights("mlp", "down_proj", bias=self.mlp == "gelu"),
        ]

    def to_hf(self, architecture: str) -> dict[str, Any]:
        """config.json of the Hugging Face architecture that has this shape.

        architecture: "CausalLM" or "SequenceClassification".
        Raises ValueError for a combination that no architecture has.
        """
        fields = asdict(self)
        for run_setting in ("dropout", "context", "unused_ids"):
            fields.pop(run_setting)
        return hf.written(fields, architecture)

    @classmethod
    def from_hf(cls, fields: dict[str, Any], context: int | None = None) -> "GPTConfig":
        """The shape that a Hugging Face config.json describes, for a run whose longest sequence has `context` tokens.

        Raises ValueError, naming the feature, for a feature that this decoder does not have; KeyError for a missing
        field.
        """
        return cls(**hf.shape_of(fields), context=context or 0)
