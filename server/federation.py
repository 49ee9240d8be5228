"""The federation as the coordinator meets it: which sites there are, and what they say."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from fedshift import UserError
from fedshift.protocol.answers import Unfit, read_card, read_details, read_name
from fedshift.protocol.cards import SiteCard
from fedshift.protocol.flower import ArrayRecord, Grid, Message, RecordDict
from fedshift.protocol.messages import (
    POOLED,
    Action,
    Instruction,
    request,
)
from fedshift.protocol.storage import write_atomic
from fedshift.server.exchange import exchange
from fedshift.server.plan import RunPlan
from fedshift.server.record import read_cards


@dataclass
class Sites:
    """The federation as the coordinator knows it: each site's node and card, and a sentence for
    everything that is wrong with a site, or with one that was left out."""

    grid: Grid
    nodes: dict[str, int]
    cards: dict[str, SiteCard]
    deadline_s: float | None = None
    problems: list[str] = field(default_factory=list)

    @property
    def names(self) -> dict[int, str]:
        """Site names by node."""
        return {node: name for name, node in self.nodes.items()}

    @property
    def labelled(self) -> list[str]:
        """The sites that train and have labels, sorted."""
        return [name for name in self.trainable if self.cards[name].has_labels]

    @property
    def trainable(self) -> list[str]:
        """The sites that may train, with labels or without, sorted."""
        return sorted(name for name, card in self.cards.items() if card.trains and name != POOLED)

    @property
    def scored(self) -> list[str]:
        """The sites on which models are scored, sorted: all real ones."""
        return sorted(name for name in self.nodes if name != POOLED)

    def ask(
        self,
        names: list[str],
        instruction: Instruction,
        arrays: ArrayRecord | None = None,
        bank: ArrayRecord | None = None,
        questions: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> Iterator[tuple[str, Message]]:
        """Send one request to each of ``names``; yield their replies in that order.

        ``questions`` hold what only one site is asked.
        """
        shared = request(instruction, arrays, bank=bank)
        messages = [
            Message(
                content=request(instruction, arrays, statistics=questions[name])
                if questions
                else shared,
                dst_node_id=self.nodes[name],
                message_type=instruction.action.message_type,
                group_id=str(instruction.round),
            )
            for name in names
        ]
        by_node = self.names
        for reply in exchange(self.grid, messages, self.deadline_s):
            yield by_node[reply.metadata.src_node_id], reply


def find(
    grid: Grid,
    instruction: Instruction,
    *,
    pooled: bool = False,
    deadline_s: float | None = None,
    names: Collection[str] = (),
) -> tuple[dict[str, int], list[str]]:
    """The node of every site that the grid reaches, by the site's name, sorted; and a sentence for
    each that cannot be used.

    A name belongs to the one node that gives it; of several that give it none is believed. Where
    the grid has ``enrolled``, the names that nodes are known under by their keys, a node's name is
    that one. With ``pooled`` one of the sites stands for all of them together. Of ``names``, unless
    there are none, no other site is wanted. Nobody is waited for beyond ``deadline_s``.
    """
    hello = request(instruction.but(action=Action.NAME))
    enrolled = _enrolled(grid)
    messages = [
        Message(content=hello, dst_node_id=node, message_type=Action.NAME.message_type)
        for node in grid.get_node_ids()
        # What a run asks is no business of sites that have no part in it.
        if not names or enrolled.get(node) is None or enrolled[node] in names
    ]
    given: dict[str, list[int]] = {}
    problems = []
    for reply in exchange(grid, messages, deadline_s):
        node = reply.metadata.src_node_id
        try:
            name = read_name(answered(reply))
            if name == POOLED and not pooled:
                raise Unfit(f"calls itself {name!r}, which stands for all sites together")
            if name != enrolled.get(node, name):
                raise Unfit(f"calls itself {name!r}, which is not the name its key is enrolled for")
            given.setdefault(name, []).append(node)
        except Unfit as fault:
            problems.append(f"{enrolled.get(node, f'node {node}')}, left out: {fault}")
    problems += [
        f"{name}, left out: {len(nodes)} nodes give themselves this name; give each site its own"
        for name, nodes in given.items()
        if len(nodes) > 1
    ]
    found = {name: nodes[0] for name, nodes in sorted(given.items()) if len(nodes) == 1}
    return {name: node for name, node in found.items() if not names or name in names}, problems


_NOBODY = 2**62
"""Nodes from here on are none: an engine says so of a message to them."""


def _enrolled(grid: Grid) -> Mapping[int, str]:
    """The names that nodes are known under by their keys, as far as the grid knows keys."""
    found: Mapping[int, str] = getattr(grid, "enrolled", {})
    return found


def answered(reply: Message) -> RecordDict:
    """What a reply holds; raises :class:`Unfit` with the site's reason when it holds an error."""
    if reply.has_error():
        raise Unfit(reply.error.reason or "sent no reason")
    return reply.content


def meet(grid: Grid, plan: RunPlan) -> Sites:
    """Find out which sites there are, and what each says of itself.

    Cards are asked for once a run and kept in ``checkpoints/sites.json``: a site that has none
    there is left out, and one that has is asked also while it is away, so that it takes part again
    once it is back and what a strategy remembers site by site keeps its places. Raises
    :class:`UserError` when none can train, a part is labelled nowhere, or one of the user's own
    sites cannot open its data.
    """
    pooled = any(strategy.pools for strategy in plan.strategies)
    # One's own sites may take as long as they need to start.
    deadline_s = None if plan.own_sites else plan.deadline_s
    nodes, problems = find(
        grid, plan.instruction, pooled=pooled, deadline_s=deadline_s, names=plan.sites
    )
    sites = Sites(grid, nodes, {}, plan.deadline_s, problems)
    path = plan.checkpoints / "sites.json"
    cards = read_cards(path)
    if cards is None:
        _ask_again(sites, plan)
        cards = _introduced(sites, plan)
        write_atomic(path, json.dumps([card.to_json() for card in cards], indent=1) + "\n")
    sites.cards = {card.name: card for card in cards}
    if not sites.cards.keys() & nodes.keys():
        raise UserError(f"no site can take part: {problems[0] if problems else 'none is there'}")
    known = {name: node for node, name in _enrolled(grid).items()}
    sites.nodes = {}
    for number, name in enumerate(sorted(sites.cards)):
        if name in nodes:
            sites.nodes[name] = nodes[name]
        else:
            sites.nodes[name] = known.get(name, _NOBODY + number)
            sites.problems.append(f"{name} is away: it takes part again once it is back")
    unread = [note for card in cards for note in card.notes if note.startswith("left out: ")]
    # Labels that could not be read are no labels that nobody drew.
    because = f" ({unread[0]})" if unread else ""
    if not sites.labelled:
        raise UserError(
            f"no site can train: none has a labelled training image{because}; check the manifest "
            "with `fedshift sites check`"
        )
    found = set().union(*(sites.cards[name].labelled for name in sites.labelled))
    absent = [name for name in plan.task["parts"] if name not in found]
    if absent:
        untold = [name for name in sites.labelled if not sites.cards[name].teaches[absent[0]]]
        if len(untold) == len(sites.labelled):
            raise UserError(
                f"no site that trains annotates '{absent[0]}': take it out of data.labels, or add "
                "it to a site in data.annotates"
            )
        raise UserError(
            f"'{absent[0]}' is to be learnt and labelled nowhere{because}: the training labels "
            f"hold {len(found)} of {len(plan.task['parts'])} names; take it out of data.labels or "
            "correct its value"
        )
    return sites


def _introduced(sites: Sites, plan: RunPlan) -> list[SiteCard]:
    """The cards of the sites that can take part together."""
    cards: dict[str, SiteCard] = {}
    faults: list[str] = []
    ask = plan.instruction.but(action=Action.CARD)
    for name, reply in sites.ask(list(sites.nodes), ask):
        if plan.own_sites and reply.has_error():
            faults.append(f"site {name}: {reply.error.reason}")
            continue
        try:
            cards[name] = read_card(answered(reply), name)
        except Unfit as fault:
            sites.problems.append(f"{name}, left out: {fault}")
    if faults:
        more = f" (and {len(faults) - 1} more sites)" if len(faults) > 1 else ""
        raise UserError(faults[0] + more)
    for what in ("parts", "size", "channels"):
        kinds = Counter(getattr(card, what) for card in cards.values())
        if len(kinds) < 2:
            continue
        (usual, _), *_ = kinds.most_common(1)
        for name, card in list(cards.items()):
            if (own := getattr(card, what)) != usual:
                problem = (
                    f"its card says {what} {own}, and most sites say {usual}: a network takes one; "
                    f"bring them to the same, or leave {name} out with data.sites"
                )
                if plan.own_sites:
                    raise UserError(f"site {name}: {problem}")
                sites.problems.append(f"{name}, left out: {problem}")
                del cards[name]
    return list(cards.values())


def _noted(reply: Message) -> dict[str, Any] | None:
    """What a site tells of its files; None where it cannot be read."""
    try:
        return read_details(answered(reply))
    except Unfit:
        return None


def _ask_again(sites: Sites, plan: RunPlan) -> None:
    """Have the sites note what the settings were chosen from; kept in ``checkpoints``."""
    for action in plan.told:
        answers = {
            name: _noted(reply)
            for name, reply in sites.ask(sites.scored, plan.instruction.but(action=action))
        }
        if action is Action.SUMMARY:
            text = json.dumps(answers, indent=1, sort_keys=True)
            write_atomic(plan.checkpoints / "summaries.json", text + "\n")
