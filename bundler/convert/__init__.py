"""Model directories of Hugging Face's layout, made into GGUF files.

Written from the formats: safetensors, the configuration and tokenizer files, and the keys and
tensor names that llama.cpp loads. What is not understood is refused, never guessed.
"""
