"""Makes the files beside this one with programs that know nothing of promptmill.

    pip install reportlab fpdf2 pypdf python-docx openpyxl python-pptx xlwt odfpy msoffcrypto-tool
    apt-get install fonts-ipaexfont-gothic
    python make.py

The files are committed, so that the tests need none of this. Dates and ids in them change from run
to run.
"""

import datetime
import email.header
import email.message
import email.mime.text
import io
import re
import zipfile

import docx
import fpdf
import msoffcrypto.format.ooxml
import odf.opendocument
import odf.table
import odf.text
import openpyxl
import PIL.Image
import pptx
import pypdf
import reportlab.pdfbase.cidfonts
import xlwt
from pptx.util import Inches
from reportlab.pdfbase import pdfmetrics
from reportlab.pdfgen import canvas

TITLE = "夜間処理の手引き"
FIRST = "文書は毎晩、変わったものだけが処理されます。"
SECOND = "結果は朝までに表として届きます。"
STOCK = [["品名", "数量"], ["りんご", 3], ["みかん", 10]]


def pdfs():
    # A Japanese font that is not in the file, with a predefined CMap and no ToUnicode.
    pdfmetrics.registerFont(reportlab.pdfbase.cidfonts.UnicodeCIDFont("HeiseiMin-W3"))
    page = canvas.Canvas("cid.pdf")
    page.setTitle(TITLE)
    page.setAuthor("試験係")
    page.setFont("HeiseiMin-W3", 20)
    page.drawString(72, 760, TITLE)
    page.setFont("HeiseiMin-W3", 11)
    page.drawString(72, 720, FIRST)
    page.drawString(72, 704, SECOND)
    page.setFont("Helvetica", 11)
    page.drawString(72, 670, "Only what changed is paid for.")
    page.showPage()
    page.setFont("HeiseiMin-W3", 11)
    page.drawString(72, 760, "二ページ目です。")
    page.save()

    # The same with the codes of Shift_JIS.
    font = reportlab.pdfbase.cidfonts.CIDFont("HeiseiKakuGo-W5", "90ms-RKSJ-H")
    pdfmetrics.registerFont(font)
    page = canvas.Canvas("shift-jis.pdf")
    page.setFont("HeiseiKakuGo-W5-90ms-RKSJ-H", 12)
    text = page.beginText(72, 760)
    text._code.append(f"<{'請求書番号は千二百三です。'.encode('cp932').hex()}> Tj")
    page.drawText(text)
    page.save()

    # A part of a font is in the file, with ToUnicode: as most programs write it.
    page = fpdf.FPDF()
    page.add_page()
    page.add_font("gothic", fname="/usr/share/fonts/opentype/ipaexfont-gothic/ipaexg.ttf")
    page.set_font("gothic", size=12)
    page.multi_cell(0, text=f"{FIRST}\n{SECOND}")
    page.output("embedded.pdf")

    PIL.Image.new("RGB", (32, 16), "white").save("white.png")
    page = canvas.Canvas("scanned.pdf")
    page.drawImage("white.png", 72, 600)
    page.save()

    protected = pypdf.PdfWriter(clone_from=pypdf.PdfReader("cid.pdf"))
    protected.encrypt("secret", algorithm="AES-256")
    protected.write("protected.pdf")


def word():
    document = docx.Document()
    document.core_properties.title = TITLE
    document.core_properties.author = "試験係"
    document.add_heading(TITLE, 0)
    document.add_heading("はじめに", 1)
    document.add_paragraph(FIRST)
    document.add_heading("手順", 2)
    for step in ["取り込む", "割る", "尋ねる"]:
        document.add_paragraph(step, style="List Number")
    document.add_paragraph("とくに大切", style="List Bullet")
    table = document.add_table(rows=0, cols=2)
    for row in STOCK:
        for cell, value in zip(table.add_row().cells, row):
            cell.text = str(value)
    document.add_paragraph("# no heading & <b>")
    document.save("report.docx")
    slim("report.docx", "stylesWithEffects|thumbnail|customXml|fontTable|webSettings")


def sheets():
    book = openpyxl.Workbook()
    book.properties.title = "在庫表"
    sheet = book.active
    sheet.title = "在庫"
    sheet.append(["品名", "数量", "入荷日", "単価"])
    sheet.append(["りんご", 3, datetime.date(2026, 3, 2), 120.5])
    sheet.append(["みかん", 10, datetime.datetime(2026, 3, 3, 9, 30), 40])
    sheet.append(["なし", None, None, None])
    book.save("rows.xlsx")
    memo = book.create_sheet("メモ")
    memo["B2"] = "自由な記述"
    memo["D5"] = True
    book.save("two.xlsx")
    far = openpyxl.Workbook()
    far.active["A1"] = "here"
    far.active["XFD1048576"] = "and there"
    far.save("far.xlsx")
    with open("rows.xlsx", "rb") as plain, open("protected.xlsx", "wb") as protected:
        msoffcrypto.format.ooxml.OOXMLFile(plain).encrypt("secret", protected)

    book = xlwt.Workbook(encoding="utf-8")
    sheet = book.add_sheet("在庫")
    for n, row in enumerate(STOCK):
        for m, value in enumerate(row):
            sheet.write(n, m, value)
    book.save("old.xls")

    book = odf.opendocument.OpenDocumentSpreadsheet()
    table = odf.table.Table(name="在庫")
    for row in STOCK:
        line = odf.table.TableRow()
        for value in row:
            cell = odf.table.TableCell(valuetype="string")
            cell.addElement(odf.text.P(text=str(value)))
            line.addElement(cell)
        table.addElement(line)
    book.spreadsheet.addElement(table)
    book.save("stock.ods")


def slides():
    deck = pptx.Presentation()
    deck.core_properties.title = "月例報告"
    slide = deck.slides.add_slide(deck.slide_layouts[1])
    slide.shapes.title.text = "月例報告"
    frame = slide.placeholders[1].text_frame
    frame.text = "売上は増えた"
    more = frame.add_paragraph()
    more.text, more.level = "とくに西日本", 1
    slide.notes_slide.notes_text_frame.text = "質問に備える"
    slide = deck.slides.add_slide(deck.slide_layouts[5])
    slide.shapes.title.text = "数字"
    table = slide.shapes.add_table(3, 2, Inches(1), Inches(2), Inches(4), Inches(1)).table
    for n, row in enumerate(STOCK):
        for m, value in enumerate(row):
            table.cell(n, m).text = str(value)
    box = slide.shapes.add_textbox(Inches(1), Inches(4), Inches(3), Inches(1))
    box.text_frame.text = "速報値"
    used = {slide.slide_layout.name for slide in deck.slides}
    for layout in [layout for layout in deck.slide_layouts if layout.name not in used]:
        deck.slide_layouts.remove(layout)
    deck.save("deck.pptx")
    slim("deck.pptx", "thumbnail|printerSettings")


def mail():
    text = "お世話になっております。\n請求書をお送りします。\n"
    message = email.mime.text.MIMEText(text, "plain", "iso-2022-jp")
    sender = email.header.Header("山田", "iso-2022-jp").encode()
    message["Subject"] = email.header.Header("請求書の件", "iso-2022-jp")
    message["From"] = f"{sender} <yamada@example.jp>"
    message["To"] = "suzuki@example.jp"
    message["Date"] = "Mon, 02 Mar 2026 09:00:00 +0900"
    write("iso-2022-jp.eml", message.as_bytes())

    message = email.message.EmailMessage()
    message["Subject"] = "Quarterly figures"
    message["From"] = "Ann <ann@example.org>"
    message["To"] = "Bob <bob@example.org>, carol@example.org"
    message["Date"] = "Tue, 03 Mar 2026 10:00:00 +0000"
    message.set_content("The figures are attached.\n")
    message.add_alternative("<p>The <b>figures</b> are attached.</p>", subtype="html")
    message.add_attachment(b"a,b\n1,2\n", maintype="text", subtype="csv", filename="figures.csv")
    write("attachment.eml", message.as_bytes())


def web():
    for name, label, codec in [("shift-jis", "Shift_JIS", "cp932"), ("euc-jp", "euc-jp", "euc-jp")]:
        page = (
            f'<!DOCTYPE html><html lang="ja"><head><meta charset="{label}"><title>{TITLE}</title>'
            f"</head><body><h1>{TITLE}</h1><p>{FIRST}</p><h2>手順</h2><ol><li>取り込む</li>"
            "<li>割る</li></ol></body></html>"
        )
        write(f"{name}.html", page.encode(codec))
    rows = '品名,数量,備考\r\nりんご,3,"赤, 甘い"\r\nみかん,10,\r\n'
    write("shift-jis.csv", rows.encode("cp932"))


def slim(name, drop):
    """Leaves out parts of the template that hold no text."""
    with zipfile.ZipFile(name) as package:
        parts = [(part, package.read(part)) for part in package.namelist()]
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as package:
        for part, content in parts:
            if re.search(drop, part):
                continue
            if part.endswith(".rels") or part == "[Content_Types].xml":
                link = rf"<(Relationship|Override) [^>]*({drop})[^>]*/>"
                content = re.sub(link.encode(), b"", content)
            if part == "word/styles.xml":
                content = re.sub(b"<w:latentStyles.*?</w:latentStyles>", b"", content, flags=re.S)
            package.writestr(part, content)
    write(name, packed.getvalue())


def write(name, content):
    with open(name, "wb") as file:
        file.write(content)


for make in [pdfs, word, sheets, slides, mail, web]:
    make()
