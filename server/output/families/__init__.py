"""The families of models whose output is understood, one small module per family."""

from __future__ import annotations

from collections.abc import Mapping

from server.output.families.cohere import COMMAND, COMMAND_R
from server.output.families.deepseek import DEEPSEEK, DEEPSEEK_DSML
from server.output.families.gemma import FUNCTION_GEMMA, GEMMA3, GEMMA4
from server.output.families.glm import GLM
from server.output.families.gpt_oss import GPT_OSS
from server.output.families.granite import GRANITE3
from server.output.families.hermes import HERMES
from server.output.families.kimi import KIMI
from server.output.families.liquid import APERTUS, LFM2
from server.output.families.llama import FUNCTIONARY, LLAMA
from server.output.families.minimax import MINICPM, MINIMAX_M1, MINIMAX_M2
from server.output.families.mistral import MISTRAL
from server.output.families.phi import PHI4
from server.output.families.qwen_coder import QWEN_CODER, SEED_OSS
from server.output.layout import Family

FAMILIES: Mapping[str, Family] = {
    family.name: family
    for family in (
        HERMES,
        QWEN_CODER,
        SEED_OSS,
        LLAMA,
        FUNCTIONARY,
        MISTRAL,
        GEMMA3,
        GEMMA4,
        FUNCTION_GEMMA,
        DEEPSEEK,
        DEEPSEEK_DSML,
        PHI4,
        GRANITE3,
        COMMAND,
        COMMAND_R,
        GLM,
        GPT_OSS,
        KIMI,
        MINIMAX_M1,
        MINIMAX_M2,
        MINICPM,
        LFM2,
        APERTUS,
    )
}
"""By name."""
