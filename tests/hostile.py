"""Texts that strangers may choose as names, prompts or results to do harm on a page.

Each belongs to a kind of attack; pages must show all of them as text, whole, and in their place.
"""

import unicodedata

CORPUS = {
    "script": "<script>alert(1)</script>",
    "attribute": '"><img src=x onerror=alert(1)>',
    "handler": "' onmouseover='alert(1)' autofocus onfocus='alert(1)",
    "end tags": "</bdi></td></table></main><h1>pwned",
    "end of texts": "</title></textarea></pre></code></script><script>alert(1)//",
    "comment": "<!--><svg/onload=alert(1)>--!>",
    "svg": "<svg><animate onbegin=alert(1) attributeName=x dur=1s></svg>",
    "frame": "<iframe srcdoc='<script>parent.alert(1)</script>'></iframe>",
    "form": "<form action=//x.invalid><button>Verify</button></form>",
    "style": "<style>*{display:none}</style><link rel=stylesheet href=//x.invalid>",
    "base": "<base href=//x.invalid/><meta http-equiv=refresh content='0;url=//x.invalid'>",
    "address": "javascript:alert(1)",
    "template": "{{ 7 * 7 }}{% raw %}${7*7}#{7*7}<%= 7 %>",
    "htmx": "<div hx-get=/ hx-trigger=load hx-swap=outerHTML hx-target=body hx-on:load=alert(1)>",
    "partial": "</template><hx-partial hx-target='body'>gone</hx-partial>",
    "entities": "&lt;script&gt;alert(1)&#60;/script&#62;&amp;#x27;",
    "section": "]]><script xmlns='http://www.w3.org/1999/xhtml'>alert(1)</script>&x;",
    "formula": '=HYPERLINK("http://x.invalid","open")',
    "other formulas": "@SUM(1+1)*cmd|' /C calc'!A0",
    "quotes": '"\'`\\"; DROP TABLE receipts; --,\t;',
    "path": "../../etc/passwd?a=b#c&d;%zz",
    "bidi": "a\u202egpj.exe\u2066\u2069\u200f\u061c",
    "invisible": "a\u200b\u200d\u2060\ufeff\u00ad\u3164\u115f\U000e0041b",
    "controls": "a\u0001\u0008\u001b[31m\u007f\u0085\u2028\u2029\r\ndata: x\n\nid: 9",
    "nul": "a\u0000b",
    "surrogates": "\\ud83d\ufffd\ufffe\uffff\U0001ffff\ue000",
    "tower": "Z" + "\u0335\u0301\u0489" * 40,
    "emoji": "\U0001f468\u200d\U0001f469\u200d\U0001f467\U0001f1e9\U0001f1ea\U0001f3f4\U000e0067",
    "right to left": ("עברית عربى " * 10).strip(),
    "wide": "\ufdfd\U00012219" * 30,
    "long word": "W" * 128,
    "many words": ("many words " * 11).strip(),
}
"""By what they try."""
HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
"""Categories of characters that hide or reorder what is around them."""


def find_hidden(text: str) -> list[str]:
    """Return the characters of a text that nobody sees, line ends and tabs aside."""
    return sorted({f"U+{ord(c):04X}" for c in text if unicodedata.category(c) in HIDDEN} - SEEN)


SEEN = {"U+000A", "U+0009"}
