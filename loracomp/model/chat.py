"""A prompt in the chat template of a base model that was tuned on conversations."""

from transformers import PreTrainedTokenizerBase

from loracomp.errors import JobError


def render(tokenizer: PreTrainedTokenizerBase, prompt: str, system_text: str | None = None) -> str:
    """The chat with the prompt as the user's message, up to the start of the model's answer; special tokens are text.

    Without `system_text` it has the template's own system message, if there is one. Raises JobError 'chat_template' if
    the tokenizer has no template, or if the template refuses the messages, as some refuse a system text.
    """
    system = [] if system_text is None else [{"role": "system", "content": system_text}]
    messages = [*system, {"role": "user", "content": prompt}]
    if tokenizer.chat_template is None:
        raise JobError("the base model's tokenizer has no chat template: leave chat_template out", code="chat_template")
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except Exception as error:  # a template may raise anything
        told = str(error).strip().partition("\n")[0]
        without = "leave system_text out, or " if system else ""
        raise JobError(
            f"the base model's chat template refuses this job ({told}): {without}set chat_template to false",
            code="chat_template",
        ) from error
    assert isinstance(text, str)
    return text
