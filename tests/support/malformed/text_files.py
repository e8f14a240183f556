"""Malformed CSV, TSV and plain text files."""

from tests.support.malformed.case import KEY, Case, as_csv

CSV = [
    Case("csv: too few fields", "a.csv", as_csv("x"), bad={":3": "wrong number of fields"}),
    Case("csv: too many fields", "a.csv", as_csv("x,y,z"), bad={":3": "wrong number of fields"}),
    Case("csv: a comma at the end", "a.csv", as_csv("x,y,"), bad={":3": "wrong number of fields"}),
    Case("csv: text behind a quote", "a.csv", as_csv('"x"x,y'), bad={":3": "invalid CSV"}),
    Case("csv: a quote that is not closed", "a.csv", as_csv('"x,y'), bad={":3": "invalid CSV"}),
    Case(
        "csv: three quotes that are not closed",
        "a.csv",
        as_csv('"x,y', 'x,"y', '"x', "1,2"),
        good=3,
        bad={":3": "invalid CSV", ":4": "invalid CSV", ":5": "invalid CSV"},
    ),
    Case("csv: a quote that the next row's quote closes", "a.csv", as_csv('"x,y', '"1",2'), good=3, bad={":3": "invalid CSV"}),
    Case("csv: a lone carriage return", "a.csv", as_csv("x\rx,y"), bad={":3": "invalid CSV"}),
    Case("csv: not UTF-8", "a.csv", as_csv("x,y").replace(b"x,y", b"\xff,y"), bad={":3": "undecodable"}),
    Case(
        "csv: not UTF-8 in the second line of a row",
        "a.csv",
        as_csv('"x\nx",y').replace(b"\nx", b"\n\xff"),
        bad={":3": "undecodable"},
    ),
    Case("csv: blank texts", "a.csv", as_csv("  ,  "), bad={":3": None}),
    Case("csv: blank lines are no rows", "a.csv", as_csv("", "  ", "")),
    Case("csv: a NUL", "a.csv", as_csv("x\0,y"), good=3),
    Case("csv: header alone", "a.csv", b"text,prompt\r\n", good=0),
    Case("csv: blank", "a.csv", b"\n \n", good=0),
    Case("csv: a column twice", "a.csv", b"\ntext,text\na,b\n", error="a.csv:2: the header has two columns 'text'"),
    Case("csv: a header with an open quote", "a.csv", b'"text,prompt\na,b\n', error="a.csv:1: the header cannot be read"),
    Case("csv: a header that is not UTF-8", "a.csv", b"te\xfft,prompt\na,b\n", error="a.csv:1: the header cannot be read"),
    Case("csv: carriage returns alone", "a.csv", b"text,prompt\ra,b\rc,d", error="a.csv:1: the header cannot be read"),
    Case("csv: a header without a known column", "a.csv", b"x,y\na,b\nc,d\n", good=0, bad={":2": None, ":3": None}),
    Case("tsv: too many fields", "a.tsv", b"text\tprompt\na\tb\nx\ty\tz\nc\td\n", bad={":3": "wrong number of fields"}),
    Case("csv: a spreadsheet", "a.csv", b"PK\x03\x04\x14\x00", error="this is a ZIP archive"),
]


TEXT = [
    Case(
        "txt: a line that is not UTF-8", "a.txt", "好\n".encode() + b"\xff\xfe\n" + "坏\n".encode(), bad={":2": "undecodable"}
    ),
    Case(
        "txt: a paragraph that is not UTF-8",
        "a.txt",
        b"a\n\nb\nb\xff\nb\n\nc",
        bad={":3": "undecodable"},
        source={"documents": "paragraph"},
    ),
    Case(
        "txt: a file that is not UTF-8", "a.txt", b"a\n\xe9\nb", good=0, bad={"": "undecodable"}, source={"documents": "file"}
    ),
    Case("txt: blank", "a.txt", b"\n \n\t\n", good=0),
    Case("txt: a blank file", "a.txt", b"\n \n\t\n", good=0, source={"documents": "file"}),
    Case("txt: spaces that are not ASCII", "a.txt", "a\n\u3000\u3000\nb".encode(), bad={":2": None}),
    Case("txt: a byte order mark alone", "a.txt", b"\xef\xbb\xbf", good=0),
    Case(
        "txt: another encoding than the recipe says",
        "a.txt",
        "好\n坏\na\nb".encode(),
        source={"encoding": "ascii"},
        bad={":1": "undecodable", ":2": "undecodable"},
    ),
    Case(
        "txt: GB18030 with a broken line",
        "a.txt",
        "春眠不觉晓，处处闻啼鸟\n".encode("gb18030") * 60 + b"\xff\xff\n" + b"abc\n",
        good=61,
        bad={":61": "undecodable"},
    ),
    Case(
        "txt: UTF-16 with half a pair",
        "a.txt",
        "a\n".encode("utf-16") + b"\x00\xd8\n\x00" + "b\n".encode("utf-16-le"),
        bad={":2": "undecodable"},
    ),
    Case("txt: UTF-16 that ends within a character", "a.txt", "a\nb\nc".encode("utf-16")[:-1], bad={":3": "undecodable"}),
    Case(
        "txt: UTF-32 with a number that is no character",
        "a.txt",
        "a\n".encode("utf-32") + b"\xff\xff\xff\x7f" + "\nb".encode("utf-32-le"),
        bad={":2": "undecodable"},
    ),
    Case(
        "txt: an unknown encoding",
        "a.txt",
        b"a",
        source={"encoding": "utf-9"},
        error=f"{KEY}.encoding: 'utf-9' is not a text encoding",
    ),
    Case(
        "txt: an encoding that is none of text",
        "a.txt",
        b"a",
        source={"encoding": "base64"},
        error=f"{KEY}.encoding: 'base64' is not a text encoding",
    ),
    Case("txt: an encoding with a NUL in its name", "a.txt", b"a", source={"encoding": "\0"}, error="is not a text encoding"),
]
