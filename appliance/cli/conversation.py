"""The interactive session of ``satchel run``: read a line, carry out what it means, again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import typer

from appliance import human
from appliance.cli.attachments import attach
from appliance.cli.chat import Looks, show_answer, show_cost
from appliance.cli.commands import State, Want, interpret, unfinished
from appliance.cli.describe import answered_blocks
from appliance.cli.lists import model_table
from appliance.cli.terminal import Keyboard
from appliance.client import Client
from appliance.errors import AppError, ServerRefusedError

_NOT_FOUND = 404
_MISSING = {
    "license": "No license was specified for this model.",
    "modelfile": "No Modelfile is known for this model.",
    "system": "No system message was specified for this model.",
    "template": "No prompt template was specified for this model.",
}


@dataclass(slots=True)
class Conversation:
    """One person, one terminal, one model at a time.

    Attributes:
        client: the server.
        state: what the session asks for.
        keyboard: where messages come from.
        facts: what ``/api/show`` says about the model.
    """

    client: Client
    state: State
    keyboard: Keyboard
    facts: Mapping[str, Any]

    @classmethod
    def begin(cls, client: Client, state: State) -> Conversation:
        """Load the model and show the messages it comes with.

        Raises:
            ServerUnreachableError, ServerRefusedError: as the server says.
        """
        talk = cls(client, state, Keyboard(history=state.history), {})
        talk._load(state.model)
        return talk

    def go_on(self) -> None:
        """Ask and answer until ``/bye`` or end of file; Ctrl-C stops an answer, not the session."""
        while (text := self.keyboard.ask(unfinished)) is not None:
            step = interpret(self.state, text)
            if step.state.history != self.state.history:
                self.keyboard.keep_history(keep=step.state.history)
            self.state = step.state
            if step.said:
                typer.echo(step.said)
            if step.want is not None and not self._carried_out(step.want):
                return

    def _carried_out(self, want: Want) -> bool:
        """Do what was asked for; ``False`` ends the session, an error does not."""
        deeds: Mapping[str, Callable[[str], None]] = {
            "ask": self._ask,
            "show": self._show,
            "load": self._change_model,
            "save": self._save,
            "list": self._list,
        }
        if want.what == "quit":
            return False
        try:
            deeds[want.what](want.text)
        except AppError as error:
            typer.echo(f"satchel: error: {human.printable(str(error))}", err=True)
        return True

    def _ask(self, text: str) -> None:
        said = text
        images: tuple[str, ...] = ()
        if "vision" in self.facts.get("capabilities", ()):
            said, images, told = attach(text)
            for line in told:
                typer.echo(line)
        message: dict[str, Any] = {"role": "user", "content": said}
        if images:
            message["images"] = list(images)
        asked = replace(self.state, messages=(*self.state.messages, message))
        rows = self.client.stream("/api/chat", asked.request())
        answer = show_answer(rows, "chat", Looks.of(self.state))
        typer.echo("\n")
        reply = {"role": "assistant", "content": answer.text}
        self.state = replace(asked, messages=(*asked.messages, reply))
        if self.state.verbose:
            show_cost(answer.row)

    def _load(self, model: str) -> None:
        self.facts = self.client.post("/api/show", {"model": model})
        body = {"model": model}
        if self.state.keep_alive:
            body["keep_alive"] = self.state.keep_alive
        self.client.post("/api/generate", {**body, **_wished(self.state)})
        for message in self.facts.get("messages") or ():
            typer.echo(human.printable(_spoken(message)))

    def _change_model(self, model: str) -> None:
        typer.echo(f"Loading model '{model}'")
        try:
            self._load(model)
        except ServerRefusedError as error:
            if error.status != _NOT_FOUND:
                raise
            typer.echo(f"Couldn't find model '{model}'")
            return
        self.state = replace(self.state, model=model, messages=(), parameters={}, system=None)

    def _save(self, name: str) -> None:
        self.client.post("/api/create", {**self.state.saved(name), "stream": False})
        typer.echo(f"Created new model '{name}'")

    def _list(self, prefix: str) -> None:
        typer.echo(model_table(self.client.get("/api/tags"), prefix))

    def _show(self, page: str) -> None:
        self.facts = self.client.post("/api/show", {"model": self.state.model})
        typer.echo(human.printable(_page(self.facts, self.state, page)))


def _wished(state: State) -> dict[str, Any]:
    return {"options": dict(state.parameters)} if state.parameters else {}


def _spoken(message: Mapping[str, Any]) -> str:
    text = str(message.get("content", ""))
    return f">>> {text}" if message.get("role") == "user" else f"{text}\n"


def _page(facts: Mapping[str, Any], state: State, page: str) -> str:
    if page == "info":
        return answered_blocks(facts)
    if page == "parameters":
        return _parameters(facts, state)
    text = str(facts.get(page) or "")
    if page == "system" and state.system:
        text = state.system
    return text or _MISSING[page]


def _parameters(facts: Mapping[str, Any], state: State) -> str:
    model = str(facts.get("parameters") or "")
    own = "\n".join(f"  {name:<30} {value}" for name, value in sorted(state.parameters.items()))
    indented = "\n".join(f"  {line}" for line in model.splitlines())
    parts = [
        f"Model defined parameters:\n{indented}\n" if model else "",
        f"User defined parameters:\n{own}\n" if own else "",
    ]
    return "\n".join(part for part in parts if part) or (
        "No additional parameters were specified for this model."
    )
