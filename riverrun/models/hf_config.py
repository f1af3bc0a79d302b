"""`config.json` in and out, family by family. What a family's switch would change and is not computed is refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from riverrun.base.errors import ConfigError, UnsupportedError
from riverrun.models.families import FULL, SLIDING, families, refuse_family

__all__ = ["read_hf", "write_hf"]

_MUST_BE: dict[str, tuple[Any, ...]] = {
    "attn_logit_softcapping": (None,),
    "final_logit_softcapping": (None,),
    "partial_rotary_factor": (1.0, None),
    "use_bidirectional_attention": (False, None),
}
_ROPE_TYPES = ("default", "linear", "dynamic", "llama3", "yarn")


def read_hf(data: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `ModelConfig` in a `config.json`'s content, not yet checked.

    UnsupportedError and ConfigError name a key whose value says what is not computed here.
    """
    if data.get("model_type") == "gemma3" and isinstance(data.get("text_config"), Mapping):
        data = {**data["text_config"], "model_type": "gemma3_text"}  # text and pictures: the text model of it
    family = data.get("model_type")
    if not isinstance(family, str) or family not in families():
        raise refuse_family(family)
    table = families()[family]
    values = table["defaults"] | {key: value for key, value in data.items() if value is not None or key in _NULLABLE}
    for key, ours in table.get("rename", {}).items():
        if key in values:
            values[ours] = values.pop(key)
    for key, allowed in _MUST_BE.items():
        if values.get(key) not in allowed:
            raise UnsupportedError(f"{key} = {values[key]!r} is not supported, supported: {allowed[0]!r}")
    if not values.get("num_key_value_heads") or data.get("num_key_value_heads", 1) is None:
        values["num_key_value_heads"] = values.get("num_attention_heads")
    values |= _biases(family, values) | table.get("fixed", {})
    values |= _rope(family, values)
    _windows(family, values)
    return {key: values[key] for key in _FIELDS if values.get(key) is not None}


_SAME = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "head_dim", "hidden_act", "max_position_embeddings", "rms_norm_eps"),
    *("rope_theta", "rope_scaling", "tie_word_embeddings", "bos_token_id", "eos_token_id"),
)
"""Keys that every family writes by these names."""
_FIELDS = (
    *("model_type", *_SAME, "rope_local_theta", "qkv_bias", "o_bias", "mlp_bias", "qk_norm", "norm_plus_one"),
    *("post_norms", "scale_embeddings", "query_pre_attn_scalar", "sliding_window", "layer_types"),
)
"""The fields of ModelConfig."""
_SCALING = (
    *("factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor", "beta_fast", "beta_slow"),
    *("attention_factor", "mscale", "mscale_all_dim", "truncate"),
)
"""The fields of RopeScaling."""
_NULLABLE = {"sliding_window", "query_pre_attn_scalar"}
"""Keys whose null says something else than the family's default."""


def _biases(family: str, values: Mapping[str, Any]) -> dict[str, bool]:
    """Where this family's switches put biases."""
    if family in ("internlm", "internlm2"):  # one switch: q, k, v and o
        return {"qkv_bias": bool(values["bias"]), "o_bias": bool(values["bias"])}
    if family == "internlm3":  # `bias` is o and the MLP
        bias = bool(values.get("bias", values.get("mlp_bias", False)))
        return {"qkv_bias": bool(values.get("qkv_bias", values.get("attention_bias", False)))} | {
            "o_bias": bias,
            "mlp_bias": bias,
        }
    attention = bool(values.get("attention_bias", False)) and family != "mistral"
    return {
        "qkv_bias": attention,
        "o_bias": attention,
        "mlp_bias": bool(values.get("mlp_bias")) and family == "llama",
    }


def _rope(family: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """rope_theta, rope_local_theta and rope_scaling, from either way of writing them."""
    rope: Any = values.get("rope_parameters") or {}
    old: Any = values.get("rope_scaling") or {}
    rotary: Any = values.get("rotary") or {} if family == "internlm" else {}
    for key, value in (("rope_parameters", rope), ("rope_scaling", old), ("rotary", rotary)):
        if not isinstance(value, Mapping):
            raise ConfigError(f"config.json: {key} must be an object, it is {type(value).__name__}")
    out: dict[str, Any] = {}
    if isinstance(rope.get(SLIDING), Mapping) or isinstance(rope.get(FULL), Mapping):  # one a kind of layer
        local = rope.get(SLIDING) or {}
        if local.get("rope_type", "default") != "default":
            raise UnsupportedError(f"rope_type '{local['rope_type']}' of sliding layers is not supported, only default")
        out["rope_local_theta"] = local.get("rope_theta", values.get("rope_local_theta"))
        rope = rope.get(FULL) or {}
    if rotary:
        kind = {"origin": "default"}.get(rotary.get("type", "default"), rotary.get("type", "default"))
        rope = {"rope_theta": rotary.get("base", 10000.0), "rope_type": kind}
        rope["factor"] = rotary.get("scaling_factor", 1.0)
    merged = {**rope, **old}  # who adds rope_scaling to a newer file means it
    if old and "rope_type" not in old and "type" in old:
        merged["rope_type"] = merged.pop("type")
    if merged.get("partial_rotary_factor") not in (None, 1, 1.0):
        raise UnsupportedError(
            f"partial_rotary_factor = {merged['partial_rotary_factor']!r} is not supported, supported: 1.0"
        )
    if "rope_theta" in merged:
        out["rope_theta"] = merged["rope_theta"]
    kind = merged.get("rope_type", merged.get("type", "default"))
    if kind not in _ROPE_TYPES:
        raise UnsupportedError(f"rope_type '{kind}' is not supported, supported: {', '.join(_ROPE_TYPES)}")
    return out | {"rope_scaling": None if kind == "default" else _scaling(kind, merged, values)}


def _scaling(kind: str, rope: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `RopeScaling`."""
    trained = values.get("max_position_embeddings")
    given = {key: rope[key] for key in _SCALING if rope.get(key) is not None} | {"rope_type": kind}
    if kind == "yarn":
        original = given.setdefault("original_max_position_embeddings", trained)
        if "factor" not in given and isinstance(trained, int) and isinstance(original, int) and original > 0:
            given["factor"] = trained / original
    elif "factor" not in given:
        raise ConfigError(f"config.json: rope_scaling of type {kind} needs 'factor', it has {sorted(rope)}")
    return given


def _windows(family: str, values: dict[str, Any]) -> None:
    """`layer_types` and `sliding_window` as ModelConfig has them."""
    layers, window = values.get("num_hidden_layers"), values.get("sliding_window")
    if not isinstance(layers, int) or layers < 1:
        return  # the field's own check says what is wrong
    types = values.get("layer_types") if family in ("qwen2", "qwen3", "gemma3_text") else None
    if types is not None and not (isinstance(types, list | tuple) and all(isinstance(each, str) for each in types)):
        raise ConfigError("config.json: layer_types must be a list of names")
    if types is not None:
        if unknown := sorted(set(types) - {FULL, SLIDING}):
            raise UnsupportedError(f"layer_types has '{unknown[0]}', supported: {FULL}, {SLIDING}")
    elif family == "gemma3_text":
        every = values["sliding_window_pattern"]
        if not isinstance(every, int) or every < 1:
            raise ConfigError(f"config.json: sliding_window_pattern must be at least 1, it is {every!r}")
        types = [SLIDING if (layer + 1) % every else FULL for layer in range(layers)]
    elif family in ("qwen2", "qwen3") and values["use_sliding_window"]:
        types = [SLIDING if layer >= values["max_window_layers"] else FULL for layer in range(layers)]
    elif family == "mistral":
        types = [SLIDING] * layers
    else:
        types = []
    if family in ("qwen2", "qwen3") and not values["use_sliding_window"]:
        window, types = None, []
    if window is None or SLIDING not in types:
        window, types = None, []
        if family == "gemma3_text" and values.get("layer_types") is None and values.get("sliding_window") is None:
            raise ConfigError("config.json: sliding_window is null, and layers of a gemma3_text model slide")
    values["sliding_window"], values["layer_types"] = window, tuple(types)


def write_hf(values: Mapping[str, Any]) -> dict[str, Any]:
    """The `config.json` of the family from the fields of `ModelConfig` (rope_scaling as its `to_hf` gives it)."""
    family = values["model_type"]
    table = families()[family]
    out: dict[str, Any] = {"architectures": [table["architecture"]], "model_type": family}
    if "remote" in table:
        out["auto_map"] = dict(table["remote"])
    out |= {key: values[key] for key in _SAME}
    out |= _written_switches(family, values)
    for key, ours in table.get("rename", {}).items():
        if ours in out:
            out[key] = out.pop(ours)
    return out


def _written_switches(family: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Keys that only this family has."""
    scaling = values["rope_scaling"]
    if family == "internlm2":
        return {"bias": values["qkv_bias"]}
    if family == "internlm":
        rotary = {"base": values["rope_theta"], "type": "origin" if scaling is None else scaling["rope_type"]}
        if scaling is not None:
            rotary["scaling_factor"] = scaling["factor"]
        return {"bias": values["qkv_bias"], "rotary": rotary, "rope_scaling": None}
    if family == "internlm3":
        return {"qkv_bias": values["qkv_bias"], "bias": values["o_bias"]}
    if family == "llama":
        return {"attention_bias": values["qkv_bias"], "mlp_bias": values["mlp_bias"]}
    if family == "mistral":
        return {"sliding_window": values["sliding_window"]}
    types = list(values["layer_types"]) or [FULL] * values["num_hidden_layers"]
    out: dict[str, Any] = {"layer_types": types, "sliding_window": values["sliding_window"]}
    if family == "gemma3_text":
        own = ("query_pre_attn_scalar", "rope_local_theta")
        return out | {key: values[key] for key in own} | {"attention_bias": values["qkv_bias"]}
    out |= {"use_sliding_window": SLIDING in types, "max_window_layers": types.count(FULL)}
    return out | ({"attention_bias": values["qkv_bias"]} if family == "qwen3" else {})
