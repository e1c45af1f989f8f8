"""The same pair of answers, and the same two labels, as each format writes them."""

ASK, GOOD, BAD = "Name a colour.", "Blue is a colour.", "I do not know any."
TURNS = [{"role": "user", "content": ASK}, {"role": "assistant", "content": GOOD}]
OTHER = [TURNS[0], {"role": "assistant", "content": BAD}]

WEBUI = {
    "id": "f1",
    "user_id": "u1",
    "type": "rating",
    "data": {"rating": 1, "model_id": "m-a", "sibling_model_ids": ["m-b"], "details": {"rating": 9}},
    "meta": {"message_id": "a", "chat_id": "chat"},
    "snapshot": {
        "chat": {
            "id": "chat",
            "chat": {
                "history": {
                    "messages": {
                        "q": {"id": "q", "parentId": None, "role": "user", "content": ASK},
                        "a": {"id": "a", "parentId": "q", "role": "assistant", "content": GOOD, "model": "m-a"},
                        "b": {"id": "b", "parentId": "q", "role": "assistant", "content": BAD, "model": "m-b"},
                        "old": {"id": "old", "parentId": "q", "role": "assistant", "content": "x", "model": "m-c"},
                    }
                }
            },
        }
    },
    "updated_at": 1760000000,
}
RUNS = [
    {"id": "r1", "inputs": {"messages": [TURNS[0]]}, "outputs": {"choices": [{"message": TURNS[1]}]}},
    {"id": "r2", "inputs": {"question": ASK}, "outputs": {"output": BAD}},
]
TREE = {
    "message_tree_id": "t",
    "prompt": {
        "message_id": "t",
        "text": ASK,
        "role": "prompter",
        "replies": [
            {"message_id": "a", "text": GOOD, "role": "assistant", "rank": 0, "emojis": {"+1": 2}, "replies": []},
            {"message_id": "b", "text": BAD, "role": "assistant", "rank": 1, "emojis": {"-1": 1}, "replies": []},
            {"message_id": "d", "text": "gone", "role": "assistant", "rank": 2, "deleted": True, "replies": []},
        ],
    },
}
PAIRED = {
    "open-webui": [WEBUI],
    "openai": [{"input": {"messages": [TURNS[0]]}, "preferred_output": [TURNS[1]], "non_preferred_output": [OTHER[1]]}],
    "arena": [{"question_id": "1", "conversation_a": OTHER, "conversation_b": TURNS, "winner": "model_b"}],
    "oasst": [TREE],
    "hh": [{side: f"\n\nHuman: {ASK}\n\nAssistant: {text}" for side, text in (("chosen", GOOD), ("rejected", BAD))}],
    "trl": [{"prompt": ASK, "chosen": GOOD, "rejected": BAD}],
}

LABELLED = {
    "langsmith": [
        *RUNS,
        {"id": "1", "run_id": "r1", "key": "up", "score": 1},
        {"id": "2", "run_id": "r2", "key": "up", "score": 0},
    ],
    "langfuse": [
        {"id": "t1", "input": ASK, "output": GOOD, "userId": "u"},
        {"id": "t2", "input": {"messages": [TURNS[0]]}, "output": {"role": "assistant", "content": BAD}},
        {"id": "s1", "traceId": "t1", "name": "feedback", "value": 1, "dataType": "BOOLEAN", "source": "API"},
        {"id": "s2", "traceId": "t2", "name": "feedback", "value": 0, "dataType": "BOOLEAN", "source": "API"},
    ],
    "kto": [
        {"conversations": [{"from": "human", "value": ASK}, {"from": "gpt", "value": text}], "kto_tag": text == GOOD}
        for text in (GOOD, BAD)
    ],
    "trl": [{"prompt": [TURNS[0]], "completion": [turns[1]], "label": turns is TURNS} for turns in (TURNS, OTHER)],
    "oasst": [TREE],
}
