"""The paths that clients of OpenAI's API know, answered by this node's miners.

bodies.py      what is asked, into a job; whatever cannot be done is refused by its name
running.py     a job from its submission to its end, for one client that stays
streaming.py   the same as a stream of events
render.py      what is answered, whole or in chunks
errors.py      refusals, in the form that these clients read
endpoints.py   the paths

A completion is a job like any other, with its receipt. It belongs to the request: when its client
goes, it is cancelled. docs/adr/0018-openai-clients.md says why.
"""
