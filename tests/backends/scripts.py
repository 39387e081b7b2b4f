# ruff: noqa: RUF001 # letters that look alike are what these texts are for
"""Texts in all scripts, to compare tokenizers by."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator

SENTENCES = {
    "Amharic": "ሰው ሁሉ ነጻ ሆኖ የተወለደ ነው።",
    "Arabic": "يولد جميع الناس أحرارًا مُتَسَاوِينَ في الكرامة، 100٪.",
    "Armenian": "Բոլոր մարդիկ ծնվում են ազատ։",
    "Bengali": "সমস্ত মানুষ স্বাধীনভাবে জন্মগ্রহণ করে।",
    "Burmese": "လူတိုင်းသည် တူညီ လွတ်လပ်သော",
    "Chinese": "人人生而自由，在尊严和权利上一律平等。",
    "Czech": "Příliš žluťoučký kůň úpěl ďábelské ódy.",
    "English": "The quick brown fox doesn't jump over 13 lazy dogs (e.g. at 5:30 a.m.).",
    "Georgian": "ყველა ადამიანი იბადება თავისუფალი.",
    "German": "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich.",
    "Greek": "ΣΊΣΥΦΟΣ: Όλοι οι άνθρωποι γεννιούνται ελεύθεροι.",
    "Gujarati": "બધા માણસો જન્મથી સ્વતંત્ર છે.",
    "Hebrew": "כׇּל בְּנֵי הָאָדָם נוֹלְדוּ בְּנֵי חוֹרִין.",
    "Hindi": "सभी मनुष्यों को गौरव और अधिकारों के मामले में स्वतन्त्रता प्राप्त है।",
    "Hungarian": "Árvíztűrő tükörfúrógép.",
    "Japanese": "すべての人間は、生まれながらにして自由であり、ﾊﾝｶｸとパピプペポ。",
    "Kannada": "ಎಲ್ಲಾ ಮಾನವರೂ ಸ್ವತಂತ್ರರಾಗಿಯೇ ಜನಿಸಿದ್ದಾರೆ.",
    "Khmer": "មនុស្សទាំងអស់កើតមកមានសេរីភាព។",
    "Korean": "모든 인간은 태어날 때부터 자유로우며 존엄하다.",
    "Lao": "ມະນຸດທຸກຄົນເກີດມາມີກຽດ.",
    "Malayalam": "മനുഷ്യരെല്ലാവരും തുല്യാവകാശങ്ങളോടെ ജനിച്ചവരാണ്.",
    "Mathematics": "∀ε>0 ∃δ: |x−a|<δ ⇒ |f(x)−L|<ε; ½ + ¼ ≠ ⅓, x² ≤ 10⁻³ µm, 𝔸𝓑𝒞",
    "Mongolian": "Хүн бүр төрж мэндлэхэд эрх чөлөөтэй.",
    "Polish": "Zażółć gęślą jaźń.",
    "Russian": "Все люди рождаются свободными; ёж и йод.",
    "Sinhala": "සියලු මනුෂ්‍යයෝ නිදහස්ව උපත ලබා ඇත.",
    "Spanish": "¿Año nuevo? ¡Pingüino, el ñandú y la cigüeña!",
    "Tamil": "மனிதப் பிறவியினர் சகலரும் சுதந்திரமாகவே பிறக்கின்றனர்.",
    "Telugu": "ప్రతిపత్తిస్వత్వముల విషయమున మానవులెల్లరును జన్మతః స్వతంత్రులు.",
    "Thai": "มนุษย์ทั้งหลายเกิดมามีอิสระและเสมอภาคกันในเกียรติศักดิ์",
    "Tibetan": "འགྲོ་བ་མིའི་རིགས་རྒྱུད་ཡོངས་ལ་སྐྱེས་ཙམ་ཉིད་ནས་",
    "Turkish": "İstanbul'da ılık bir ığdır: Iİiı.",
    "Ukrainian": "Всі люди народжуються вільними; їжак і ґанок.",
    "Urdu": "تمام انسان آزاد اور حقوق و عزت کے اعتبار سے برابر پیدا ہوئے ہیں۔",
    "Vietnamese": "Tất cả mọi người sinh ra đều được tự do; Tiếng Việt rất hay.",
}
"""A sentence in each of many languages."""

CURIOSITIES = {
    "empty": "",
    "spaces": "     ",
    "spaces around": "   two   words   ",
    "kinds of white space": "x".join(
        "\t\n\x0b\x0c\r\x1c\x1d\x1e\x1f\x85\xa0\u1680\u2000\u2003\u2009\u2028\u2029\u202f\u205f\u3000"
    ),
    "no white space": "a\u180eb\u200bc\u200cd\u200de\u2060f\ufeffg\u00adh",
    "control characters": "".join(f"x{chr(number)}" for number in (*range(1, 32), *range(127, 160))),
    "directions": "\u202eright to left\u202c \u2066isolated\u2069 \u200fmark\u061c",
    "replacement": "a\ufffdb \ufffd \ufffe \U0010ffff",
    "private use": "a\ue000b \uf8ff \U000f0000 \U00100000",
    "tags": "flag\U0001f3f4\U000e0067\U000e0062\U000e007f end",
    "emoji": "🙂🚀 👨‍👩‍👧‍👦 👍🏽 🇩🇪🇫🇷 1️⃣ ❤️ ☃ ✈︎ 🏳️‍🌈",
    "combining": "e\u0301 a\u0308\u0304 n\u0303 o\u0328\u0301 c\u0327 A\u030a q\u0307\u0323 Z͑ͫ̓ͪ̂ͫ̽͏̴̙̤̞͉͚̯̞̠͍A̴̵̜̰͔ͫ͗͢",
    "ligatures": "ﬁne eﬀort ŉ ǆ ĳ ﬅ ㎏ ㏂ ① ⑩ Ⅷ ％ Ａｂｃ ﷺ",
    "capitals": "ǅ ẞ ß ŒUVRE ÆON ΑΣ ς Ⴀ Ꭰ Ꭲ ᾼ İ I ı K Å",
    "word of 100": "ab" * 50,
    "word of 102": "ab" * 51,
    "conjoining letters": "\u1112\u1161\u11ab\u1100\u116e\u11a8",
    "half width": "ｶﾞｷﾞ ﾊﾟ ﾊﾝｶｸ",
    "digits": "0123456789" * 8 + " 1,234.56 ١٢٣ १२३ ᠐᠑᠒",
    "signs": "don't e-mail: a.b@c.org/d?e=f&g#h ~`^|\\ $5.00 €7 £8 ¥9 a+b=c <tag> {x[0]} «quoted» “quoted” — – … 、。「」",
    "code": "def embed(texts: list[str]) -> list[list[float]]:\n\treturn [model(text) for text in texts]  # __init__\n",
    "marks of pieces": "##ing ## ##a#b ▁word word▁word ▁ ▁▁",
    "brackets": "[cls] [ SEP ] [] [[UNK] ] [SEP [unused1] [PAD5] <S> < s > <s",
}
"""Texts that tokenizers may differ on, of no single language."""

SPECIAL = {
    "word piece": "[CLS] a[SEP]b [MASK]c [UNK] [PAD][PAD] [SEP]",
    "word piece, alone": "[SEP]",
    "unigram": "<s> a</s>b <mask>c <unk> <pad><pad> </s>",
    "unigram, alone": "</s>",
}
"""Texts with the names of special tokens."""

_ASSIGNED = frozenset(range(0x30000)) | frozenset(range(0xE0000, 0xE0200))
"""Code points among which characters are assigned."""


def blocks(size: int = 64) -> Iterator[tuple[str, str]]:
    """Yield the place and the characters of each block of Unicode, as far as this Python knows them.

    Surrogates are no characters. A text cannot have NUL.
    """
    for start in sorted({number // size * size for number in _ASSIGNED}):
        characters = [chr(number) for number in range(start, start + size)]
        known = [each for each in characters if unicodedata.category(each) not in {"Cn", "Cs"} and each != "\0"]
        if known:
            yield f"U+{start:04X}", "".join(known)
