"""Which links of a Wikipedia article show no text: files, categories, and articles of other languages.

MediaWiki goes by the prefix before the first colon, if it is the name of a namespace or of another wiki:
`[[CSI: Miami]]` is an ordinary title. A dump lists the names of its namespaces; everywhere the English
ones hold too. Names that a wiki used earlier aren't listed, so `[[Bild:Reiher.jpg]]` is known as a file
by its suffix.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from xml.etree import ElementTree

_WITHOUT_TEXT = ("-2", "6", "14")  # the keys of Media, File and Category
_ENGLISH = ("Media", "File", "Image", "Category")
# Category in the other script of wikis that are written in two; the dump has one of them.
_OTHER_SCRIPTS = ("分类", "分類", "Kategorija", "Категорија")
_MEDIA_FILE = re.compile(
    r"\.(apng|djvu|flac|gif|jpe?g|midi?|mp[34g]|mpeg|og[agv]|opus|pdf|png|stl|svg|tiff?|wav|web[mp]|xcf)$",
    re.IGNORECASE,
)
_DIRECTION_MARKS = re.compile("[\u200e\u200f\u202a-\u202e]")
_LANGUAGES = """
    aa ab ace ady af ak als alt am ami an ang ann anp ar arc ary arz as ast atj av avk awa ay az azb ba
    ban bar bat-smg bbc bcl bdr be be-tarask be-x-old bew bg bh bi bjn blk bm bn bo bpy br bs btm bug bxr
    ca cbk-zam cdo ce ceb ch cho chr chy ckb co cr crh cs csb cu cv cy da dag de dga din diq dsb dtp dty
    dv dz ee el eml en eo es et eu ext fa fat ff fi fiu-vro fj fo fon fr frp frr fur fy ga gag gan gcr
    gd gl glk gn gom gor got gpe gu guc gur guw gv ha hak haw he hi hif ho hr hsb ht hu hy hyw hz ia iba
    id ie ig igl ii ik ilo inh io is it iu ja jam jbo jv ka kaa kab kaj kbd kbp kcg kg kge ki kj kk kl
    km kn knc ko koi kr krc ks ksh ku kus kv kw ky la lad lb lbe lez lfn lg li lij lld lmo ln lo lrc lt
    ltg lv lzh mad mai map-bms mdf mg mh mhr mi min mk ml mn mni mnw mo mos mr mrj ms mt mus mwl my myv
    mzn na nah nan nap nb nds nds-nl ne new ng nia nl nn no nov nqo nr nrm nso nup nv ny oc olo om or os
    pa pag pam pap pcd pcm pdc pfl pi pih pl pms pnb pnt ps pt pwn qu rm rmy rn ro roa-rup roa-tara rsk
    ru rue rup rw sa sah sat sc scn sco sd se sg sgs sh shi shn shy si simple sk skr sl sm smn sn so sq
    sr srn ss st stq su sv sw syl szl szy ta tay tcy tdd te tet tg th ti tig tk tl tly tn to tpi tr trv
    ts tt tum tw ty tyv udm ug uk ur uz ve vec vep vi vls vo vro wa war wo wuu xal xh xmf yi yo yue za
    zea zgh zh zh-classical zh-min-nan zh-yue zu
"""
"""The prefixes of Wikipedia's languages, which no dump lists."""


def _normal(prefix: str) -> str:
    """A prefix as MediaWiki compares it."""
    # MediaWiki lowers the Turkish İ to i, and Unicode to i with a dot above.
    text = " ".join(_DIRECTION_MARKS.sub("", prefix).replace("_", " ").split())
    return text.replace("İ", "i").casefold()


def _prefixes(names: Iterable[str]) -> frozenset[str]:
    return frozenset(map(_normal, (*_ENGLISH, *_OTHER_SCRIPTS, *_LANGUAGES.split(), *names)))


PREFIXES_EVERYWHERE = _prefixes([])
"""The prefixes of links without text that hold on every wiki."""


def hidden_prefixes(siteinfo: ElementTree.Element) -> frozenset[str]:
    """The prefixes of links without text on the wiki that `siteinfo`, of its dump, describes."""
    namespaces = siteinfo.iterfind("{*}namespaces/{*}namespace")
    return _prefixes(one.text or "" for one in namespaces if one.get("key") in _WITHOUT_TEXT) - {""}


def shows_text(title: str, hidden: frozenset[str]) -> bool:
    """Whether a link to `title` appears in the text. A leading colon makes any link appear."""
    prefix, colon, name = title.partition(":")
    if not colon or not _normal(prefix):
        return True
    return _normal(prefix) not in hidden and not _MEDIA_FILE.search(name.strip())
