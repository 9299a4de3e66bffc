//! Converts HTML to Markdown: headings, paragraphs, lists, tables and code; the rest is its text.
//!
//! Tokens are taken as they come and no tree is built, so nesting costs nothing and tag soup is
//! read as far as possible.

use encoding_rs::Encoding;
use html5gum::{DefaultEmitter, StartTag, Token, Tokenizer};

use super::markdown::{MarkdownWriter, add_words, one_line};
use super::{Document, ReadError, ReadLimits, plain};

/// Reads a page.
///
/// # Errors
/// If it is broken in its encoding, or has no text or too much.
pub(super) fn read(bytes: &[u8], limits: &ReadLimits) -> Result<Document, ReadError> {
    convert(&decode(bytes)?, limits)
}

/// Converts a page to Markdown.
///
/// # Errors
/// If there is none, or too much.
pub(super) fn convert(html: &str, limits: &ReadLimits) -> Result<Document, ReadError> {
    let mut page = HtmlPage::new(limits.text_bytes);
    let mut emitter = DefaultEmitter::default();
    emitter.naively_switch_states(true);
    for token in Tokenizer::new_with_emitter(html, emitter) {
        let Ok(token) = token;
        match token {
            Token::StartTag(tag) => page.open(&tag)?,
            Token::EndTag(tag) => page.close(&tag.name)?,
            Token::String(text) => page.push_text(&String::from_utf8_lossy(&text)),
            Token::Comment(_) | Token::Doctype(_) | Token::Error(_) => {}
        }
    }
    page.finish()
}

/// Decodes by the byte order mark, else as declared, else by what the bytes look like.
fn decode(bytes: &[u8]) -> Result<String, ReadError> {
    let declared = declared_encoding(&bytes[..bytes.len().min(super::kind::HEAD_BYTES)]);
    match declared {
        Some(encoding) if Encoding::for_bom(bytes).is_none() => {
            plain::whole(encoding, bytes).or_else(|_| plain::decode(bytes))
        }
        _ => plain::decode(bytes),
    }
}

/// Returns the encoding in `<meta charset=…>`, in the `content` of the older meta tag, or in an XML
/// declaration.
fn declared_encoding(head: &[u8]) -> Option<&'static Encoding> {
    let head = String::from_utf8_lossy(head).to_ascii_lowercase();
    let value = |name: &str| {
        let (_, rest) = head.split_once(name)?;
        let rest =
            rest.trim_start().strip_prefix('=')?.trim_start().trim_start_matches(['"', '\'']);
        Some(&rest[..rest.find(['"', '\'', ';', ' ', '>', '/', '?']).unwrap_or(rest.len())])
    };
    let label = value("charset").or_else(|| value("encoding"))?;
    let encoding = Encoding::for_label(label.as_bytes())?;
    // A declaration that can be read in ASCII is not in UTF-16 (HTML standard, 13.2.3.2).
    let wide = encoding == encoding_rs::UTF_16LE || encoding == encoding_rs::UTF_16BE;
    Some(if wide { encoding_rs::UTF_8 } else { encoding })
}

/// Block of the current text.
#[derive(Debug, Clone, Copy)]
enum HtmlBlock {
    Paragraph,
    Heading(usize),
    Item,
    Code,
    Title,
}

#[derive(Debug, Default)]
struct HtmlTable {
    rows: Vec<Vec<String>>,
    in_cell: bool,
}

/// Depth beyond which lists and tables are ignored: nobody can read them.
const MAX_DEPTH: usize = 32;

struct HtmlPage {
    out: MarkdownWriter,
    block: HtmlBlock,
    text: String,
    /// The next number of each list that is open; none for those without numbers.
    lists: Vec<Option<u64>>,
    tables: Vec<HtmlTable>,
    /// Element whose content is left out, and how often it is open.
    hidden: Option<(Vec<u8>, usize)>,
    title: String,
    metadata: Vec<(&'static str, String)>,
}

impl HtmlPage {
    fn new(limit: u64) -> Self {
        Self {
            out: MarkdownWriter::new(limit),
            block: HtmlBlock::Paragraph,
            text: String::new(),
            lists: Vec::new(),
            tables: Vec::new(),
            hidden: None,
            title: String::new(),
            metadata: Vec::new(),
        }
    }

    fn open(&mut self, tag: &StartTag<()>) -> Result<(), ReadError> {
        let name = tag.name.as_slice();
        if let Some((hidden, depth)) = &mut self.hidden {
            *depth += usize::from(name == hidden.as_slice() && !tag.self_closing);
            return Ok(());
        }
        match name {
            b"script" | b"style" | b"noscript" | b"template" | b"svg" | b"math" | b"iframe"
            | b"object" | b"canvas" | b"select" | b"textarea"
                if !tag.self_closing =>
            {
                self.hidden = Some((name.to_vec(), 1));
            }
            b"title" => self.begin_block(HtmlBlock::Title)?,
            b"html" | b"meta" => self.read_metadata(tag),
            b"img" => self.push_text(&attribute(tag, "alt").unwrap_or_default()),
            b"br" if matches!(self.block, HtmlBlock::Code) => self.text.push('\n'),
            b"br" => self.push_text(" "),
            b"pre" => self.begin_block(HtmlBlock::Code)?,
            b"li" => self.begin_block(HtmlBlock::Item)?,
            b"ul" | b"menu" => self.open_list(None)?,
            b"ol" => {
                let start = attribute(tag, "start").and_then(|start| start.parse().ok());
                self.open_list(Some(start.unwrap_or(1)))?;
            }
            b"table" => self.open_table()?,
            b"tr" => self.open_row()?,
            b"td" | b"th" => self.open_cell()?,
            _ => match heading(name) {
                Some(level) => self.begin_block(HtmlBlock::Heading(level))?,
                None if is_block(name) => self.begin_block(HtmlBlock::Paragraph)?,
                None => {}
            },
        }
        Ok(())
    }

    fn close(&mut self, name: &[u8]) -> Result<(), ReadError> {
        if let Some((hidden, depth)) = &mut self.hidden {
            *depth -= usize::from(name == hidden.as_slice());
            if *depth == 0 {
                self.hidden = None;
            }
            return Ok(());
        }
        match name {
            b"ul" | b"menu" | b"ol" => {
                self.begin_block(HtmlBlock::Paragraph)?;
                self.lists.pop();
            }
            b"td" | b"th" | b"tr" => self.close_cell(),
            b"table" => self.close_table()?,
            b"title" | b"pre" | b"li" => self.begin_block(HtmlBlock::Paragraph)?,
            _ if heading(name).is_some() || is_block(name) => {
                self.begin_block(HtmlBlock::Paragraph)?
            }
            _ => {}
        }
        Ok(())
    }

    fn push_text(&mut self, text: &str) {
        if self.hidden.is_some() {
        } else if matches!(self.block, HtmlBlock::Code) {
            self.text.push_str(text);
        } else {
            add_words(&mut self.text, text);
        }
    }

    /// Ends the current block and begins the next.
    fn begin_block(&mut self, next: HtmlBlock) -> Result<(), ReadError> {
        if self.in_cell() {
            // A page laid out as a table: blocks with a structure of their own are no cells.
            if matches!(next, HtmlBlock::Heading(_) | HtmlBlock::Code) {
                self.dissolve_table()?;
            } else {
                self.push_text(" ");
                return Ok(());
            }
        }
        let text = std::mem::take(&mut self.text);
        match std::mem::replace(&mut self.block, next) {
            HtmlBlock::Paragraph => self.out.paragraph(&text),
            HtmlBlock::Heading(level) => self.out.heading(level, &text),
            HtmlBlock::Code => self.out.code(&text),
            HtmlBlock::Title => {
                self.title = one_line(&text);
                Ok(())
            }
            HtmlBlock::Item => {
                let depth = self.lists.len();
                let mark = match self.lists.last_mut() {
                    Some(Some(number)) => {
                        *number += 1;
                        format!("{}.", *number - 1)
                    }
                    _ => "-".to_owned(),
                };
                self.out.item(depth, &mark, &text)
            }
        }
    }

    fn open_list(&mut self, start: Option<u64>) -> Result<(), ReadError> {
        self.begin_block(HtmlBlock::Paragraph)?;
        if self.lists.len() < MAX_DEPTH {
            self.lists.push(start);
        }
        Ok(())
    }

    fn in_cell(&self) -> bool {
        self.tables.last().is_some_and(|table| table.in_cell)
    }

    fn open_table(&mut self) -> Result<(), ReadError> {
        if self.in_cell() {
            self.dissolve_table()?;
        }
        self.begin_block(HtmlBlock::Paragraph)?;
        if self.tables.len() < MAX_DEPTH {
            self.tables.push(HtmlTable::default());
        }
        Ok(())
    }

    fn open_row(&mut self) -> Result<(), ReadError> {
        self.close_cell();
        match self.tables.last_mut() {
            Some(table) => table.rows.push(Vec::new()),
            None => self.begin_block(HtmlBlock::Paragraph)?,
        }
        Ok(())
    }

    fn open_cell(&mut self) -> Result<(), ReadError> {
        self.close_cell();
        if self.tables.is_empty() {
            return self.begin_block(HtmlBlock::Paragraph);
        }
        // Text between the cells, such as a caption, goes before the table.
        self.begin_block(HtmlBlock::Paragraph)?;
        if let Some(table) = self.tables.last_mut() {
            if table.rows.is_empty() {
                table.rows.push(Vec::new());
            }
            table.in_cell = true;
        }
        Ok(())
    }

    fn close_cell(&mut self) {
        if let Some(table) = self.tables.last_mut().filter(|table| table.in_cell) {
            let text = one_line(&std::mem::take(&mut self.text));
            table.rows.last_mut().into_iter().for_each(|row| row.push(text.clone()));
            table.in_cell = false;
        }
    }

    fn close_table(&mut self) -> Result<(), ReadError> {
        self.close_cell();
        self.begin_block(HtmlBlock::Paragraph)?;
        match self.tables.pop() {
            Some(table) => self.out.table(&table.rows),
            None => Ok(()),
        }
    }

    /// Makes paragraphs of what the table has so far; its further cells become paragraphs too.
    fn dissolve_table(&mut self) -> Result<(), ReadError> {
        let Some(table) = self.tables.last_mut() else { return Ok(()) };
        table.in_cell = false;
        for cell in std::mem::take(&mut table.rows).iter().flatten() {
            self.out.paragraph(cell)?;
        }
        Ok(())
    }

    fn read_metadata(&mut self, tag: &StartTag<()>) {
        if let Some(language) = attribute(tag, "lang").filter(|_| tag.name.as_slice() == b"html") {
            self.metadata.push(("language", language));
        }
        let named = attribute(tag, "name").map(|name| name.to_ascii_lowercase());
        let name = match named.as_deref() {
            Some("author") => "author",
            Some("description") => "description",
            Some("date") => "date",
            _ => return,
        };
        self.metadata.extend(attribute(tag, "content").map(|content| (name, content)));
    }

    fn finish(mut self) -> Result<Document, ReadError> {
        while !self.tables.is_empty() {
            self.close_table()?;
        }
        self.begin_block(HtmlBlock::Paragraph)?;
        let mut document = Document::text("html", self.out.finish()?, true);
        document.set_metadata("title", self.title);
        for (name, value) in self.metadata {
            document.set_metadata(name, value);
        }
        Ok(document)
    }
}

fn attribute(tag: &StartTag<()>, name: &str) -> Option<String> {
    tag.attributes.get(name.as_bytes()).map(|value| String::from_utf8_lossy(value).into_owned())
}

fn heading(name: &[u8]) -> Option<usize> {
    match name {
        [b'h', level @ b'1'..=b'6'] => Some(usize::from(level - b'0')),
        _ => None,
    }
}

fn is_block(name: &[u8]) -> bool {
    matches!(
        name,
        b"p" | b"div"
            | b"section"
            | b"article"
            | b"header"
            | b"footer"
            | b"main"
            | b"nav"
            | b"aside"
            | b"body"
            | b"head"
            | b"blockquote"
            | b"dl"
            | b"dt"
            | b"dd"
            | b"figure"
            | b"figcaption"
            | b"address"
            | b"hr"
            | b"form"
            | b"fieldset"
            | b"legend"
            | b"details"
            | b"summary"
            | b"caption"
            | b"option"
            | b"center"
    )
}

#[cfg(test)]
mod tests {
    use super::super::DocumentContent;
    use super::*;

    fn text(html: &str) -> String {
        match convert(html, &ReadLimits::default()).unwrap().content {
            DocumentContent::Text { text, .. } => text,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_a_page_says_stays_and_how_it_looks_goes() {
        let page = "<html lang=ja><head><title> 手引き </title><style>p { color: red }</style>\
                    <script>if (a < b) { '</p>' }</script></head><body><h1>夜間\n処理</h1>\
                    <p>One <b>bold</b>&amp; <a href=x>link</a>.<p>Two<ul><li>a<li>b<ol start=3>\
                    <li>c</ol></ul><pre>x\n  y</pre><table><tr><th>品名<th>数量<tr><td>a|b<td>3</table>";
        assert_eq!(
            text(page),
            "# 夜間処理\n\nOne bold& link.\n\nTwo\n\n- a\n- b\n  3. c\n\n```\nx\n  y\n```\n\n\
             | 品名 | 数量 |\n| --- | --- |\n| a\\|b | 3 |\n"
        );
        let metadata = convert(page, &ReadLimits::default()).unwrap().metadata;
        assert_eq!(metadata["title"], "手引き");
        assert_eq!(metadata["language"], "ja");
    }

    #[test]
    fn a_page_laid_out_as_a_table_keeps_its_headings() {
        let page = "<table><tr><td>menu<td><h1>Title</h1><p>text<table><tr><td>a<td>b</table>\
                    </table>";
        assert_eq!(text(page), "menu\n\n# Title\n\ntext\n\n| a | b |\n| --- | --- |\n");
    }

    #[test]
    fn pages_are_read_in_the_encoding_they_declare() {
        for encoding in [encoding_rs::SHIFT_JIS, encoding_rs::EUC_JP] {
            let page = format!("<meta charset='{}'><p>短い文", encoding.name());
            let (bytes, _, _) = encoding.encode(&page);
            assert!(decode(&bytes).unwrap().ends_with("短い文"), "{}", encoding.name());
        }
        let wrong = "<meta charset=iso-2022-jp><p>短い文だが宣言が違う";
        assert_eq!(decode(wrong.as_bytes()).unwrap(), wrong);
    }

    #[test]
    fn nesting_costs_nothing() {
        let page = "<div><table><tr><td><ul><li>".repeat(20_000) + "end";
        assert!(text(&page).contains("end"));
    }
}
