"""PostgreSQL's names of encodings as Python's codecs.

A logical decoding message is raw bytes in the encoding of its database; unlike rows it is not
converted on its way. PostgreSQL documentation: "Character Set Support", the server's encodings.
"""

from typing import Final

_CODECS: Final = {
    "UTF8": "utf-8",
    "EUC_CN": "gb2312",
    "EUC_JP": "euc_jp",
    "EUC_JIS_2004": "euc_jis_2004",
    "EUC_KR": "euc_kr",
    "ISO_8859_5": "iso8859-5",
    "ISO_8859_6": "iso8859-6",
    "ISO_8859_7": "iso8859-7",
    "ISO_8859_8": "iso8859-8",
    "KOI8R": "koi8-r",
    "KOI8U": "koi8-u",
    "LATIN1": "iso8859-1",
    "LATIN2": "iso8859-2",
    "LATIN3": "iso8859-3",
    "LATIN4": "iso8859-4",
    "LATIN5": "iso8859-9",
    "LATIN6": "iso8859-10",
    "LATIN7": "iso8859-13",
    "LATIN8": "iso8859-14",
    "LATIN9": "iso8859-15",
    "LATIN10": "iso8859-16",
    "WIN866": "cp866",
    "WIN874": "cp874",
    "WIN1250": "cp1250",
    "WIN1251": "cp1251",
    "WIN1252": "cp1252",
    "WIN1253": "cp1253",
    "WIN1254": "cp1254",
    "WIN1255": "cp1255",
    "WIN1256": "cp1256",
    "WIN1257": "cp1257",
    "WIN1258": "cp1258",
}


def codec_for(server_encoding: str) -> str:
    """Choose the codec that reads messages of a database.

    Args:
        server_encoding: The setting ``server_encoding``.

    Returns:
        A codec's name; ``ascii``, which all of the server's encodings contain, where Python has
        none (EUC_TW, MULE_INTERNAL).
    """
    return _CODECS.get(server_encoding, "ascii")
