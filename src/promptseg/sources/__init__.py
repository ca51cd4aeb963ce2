"""Where data comes from: fetch and check-data alone read it, and nobody else imports it.

Start with `build`, which chooses a reader: `folder` (one's own pictures), `lpcvc` (the challenge's layout), `refcoco`
(REFER's), or `shapes`, which draws its own. Readers turn what they find into `repack.Annotated` and note mistakes:
`coco` reads tables and masks for three of them, `checks` holds what all hold data to, `mirrors` obtains files. `repack`
checks pictures, masks, phrases and splits, and writes. It may import datasets, params, download and files.
"""
