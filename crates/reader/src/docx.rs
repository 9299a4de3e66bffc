//! Word documents: headings, paragraphs, lists, tables and notes, in Markdown.
//!
//! Left out are text that was deleted or moved away, reading aids above the text (ruby), headers
//! and footers.

use std::collections::HashMap;

use quick_xml::events::BytesStart;

use super::markdown::MarkdownWriter;
use super::package::OfficePackage;
use super::xml::{XmlNode, XmlNodes, attribute};
use super::{Document, ReadError, ReadLimits};

const KIND: &str = "DOCX";

/// Reads a document whose text is in the part `main`.
///
/// # Errors
/// If a part is broken, or there is no text or too much.
pub(super) fn read(
    mut package: OfficePackage,
    main: &str,
    limits: &ReadLimits,
) -> Result<Document, ReadError> {
    let parts = package.relationships(main)?;
    let named = |kind: &str| parts.values().find(|one| one.kind == kind).map(|one| &*one.part);
    let mut text_of = |name: Option<&str>| match name {
        Some(name) => package.part(name).map(Option::unwrap_or_default),
        None => Ok(String::new()),
    };
    let styles = styles(&text_of(named("styles"))?)?;
    let numbering = numbering(&text_of(named("numbering"))?)?;
    let text = text_of(Some(main))?;
    if text.is_empty() {
        return Err(ReadError::broken(KIND, "its text is missing"));
    }
    let mut body = DocxBody::new(&styles, &numbering, limits.text_bytes);
    body.read(&text)?;
    for notes in ["footnotes", "endnotes"] {
        body.read(&text_of(named(notes))?)?;
    }
    let mut document = Document::text("docx", body.out.finish()?, true);
    package.read_properties(&mut document)?;
    Ok(document)
}

/// Properties that a style gives its paragraphs.
#[derive(Debug, Default, Clone)]
struct DocxStyle {
    based_on: Option<String>,
    heading: Option<usize>,
    list: Option<String>,
}

fn styles(text: &str) -> Result<HashMap<String, DocxStyle>, ReadError> {
    let mut nodes = XmlNodes::new(text, KIND);
    let mut styles = HashMap::new();
    let mut id = String::new();
    while let Some(node) = nodes.next()? {
        let XmlNode::Start(start) = node else { continue };
        let value = || attribute(&start, "val");
        if start.local_name().as_ref() == "style" {
            id = attribute(&start, "styleId").unwrap_or_default();
            styles.insert(id.clone(), DocxStyle::default());
        }
        let Some(style) = styles.get_mut(&id) else { continue };
        match start.local_name().as_ref() {
            // The names are English in every language's Word; the ids are not.
            "name" => {
                let name = value().unwrap_or_default().to_lowercase();
                style.heading = match name.strip_prefix("heading ") {
                    Some(level) => level.parse().ok(),
                    None => (name == "title").then_some(1),
                };
            }
            "basedOn" => style.based_on = value(),
            "outlineLvl" => style.heading = outline(value()).or(style.heading),
            "numId" => style.list = value(),
            _ => {}
        }
    }
    Ok(styles)
}

/// Converts an outline level: they count from 0; 9 is body text.
fn outline(level: Option<String>) -> Option<usize> {
    level?.parse().ok().filter(|level| *level < 9).map(|level: usize| level + 1)
}

/// Lists, with a flag for each level: true if it is numbered.
type ListNumbering = HashMap<String, Vec<bool>>;

fn numbering(text: &str) -> Result<ListNumbering, ReadError> {
    let mut nodes = XmlNodes::new(text, KIND);
    let (mut kinds, mut lists) = (ListNumbering::new(), ListNumbering::new());
    let (mut kind, mut list) = (String::new(), String::new());
    while let Some(node) = nodes.next()? {
        let XmlNode::Start(start) = node else { continue };
        match start.local_name().as_ref() {
            "abstractNum" => kind = attribute(&start, "abstractNumId").unwrap_or_default(),
            "num" => list = attribute(&start, "numId").unwrap_or_default(),
            "numFmt" => {
                let format = attribute(&start, "val").unwrap_or_default();
                let numbered = format != "bullet" && format != "none";
                kinds.entry(kind.clone()).or_default().push(numbered);
            }
            "abstractNumId" => {
                let levels = attribute(&start, "val").and_then(|kind| kinds.get(&kind));
                lists.insert(list.clone(), levels.cloned().unwrap_or_default());
            }
            _ => {}
        }
    }
    Ok(lists)
}

#[derive(Debug, Default)]
struct DocxParagraph {
    text: String,
    style: String,
    heading: Option<usize>,
    list: Option<String>,
    depth: usize,
}

/// Rows of cells.
type DocxTable = Vec<Vec<String>>;

struct DocxBody<'a> {
    styles: &'a HashMap<String, DocxStyle>,
    numbering: &'a ListNumbering,
    out: MarkdownWriter,
    /// Current paragraph last, after those whose text boxes contain it.
    paragraphs: Vec<DocxParagraph>,
    tables: Vec<DocxTable>,
    /// The next numbers of each list, by level.
    numbers: HashMap<String, Vec<u64>>,
    /// The mark of the note that begins.
    note: Option<String>,
    in_text: bool,
    in_properties: bool,
    hidden: usize,
}

impl<'a> DocxBody<'a> {
    fn new(
        styles: &'a HashMap<String, DocxStyle>,
        numbering: &'a ListNumbering,
        limit: u64,
    ) -> Self {
        Self {
            styles,
            numbering,
            out: MarkdownWriter::new(limit),
            paragraphs: Vec::new(),
            tables: Vec::new(),
            numbers: HashMap::new(),
            note: None,
            in_text: false,
            in_properties: false,
            hidden: 0,
        }
    }

    fn read(&mut self, text: &str) -> Result<(), ReadError> {
        let mut nodes = XmlNodes::new(text, KIND);
        let mut ended = text.is_empty();
        while let Some(node) = nodes.next()? {
            match node {
                XmlNode::Start(start) => self.open(&start),
                XmlNode::Text(text) => {
                    if self.in_text && self.hidden == 0 {
                        self.push_text(&text);
                    }
                }
                XmlNode::End(name) => {
                    ended |= matches!(name.as_str(), "document" | "footnotes" | "endnotes");
                    self.close(&name)?;
                }
            }
        }
        if ended { Ok(()) } else { Err(ReadError::broken(KIND, "its text ends early")) }
    }

    fn push_text(&mut self, text: &str) {
        if let Some(paragraph) = self.paragraphs.last_mut() {
            paragraph.text.push_str(text);
        }
    }

    fn open(&mut self, start: &BytesStart<'_>) {
        let name = start.local_name();
        if is_hidden(name.as_ref()) {
            self.hidden += 1;
        }
        if self.hidden > 0 {
            return;
        }
        let value = || attribute(start, "val");
        match name.as_ref() {
            "p" => self.paragraphs.push(DocxParagraph::default()),
            "pPr" => self.in_properties = true,
            "t" => self.in_text = true,
            "tab" | "br" | "cr" | "noBreakHyphen" if !self.in_properties => {
                self.push_text(match name.as_ref() {
                    "tab" => "\t",
                    "noBreakHyphen" => "-",
                    _ => "\n",
                });
            }
            "footnoteReference" | "endnoteReference" => {
                let id = attribute(start, "id").unwrap_or_default();
                self.push_text(&format!("[^{id}]"));
            }
            "footnote" | "endnote" => self.note = attribute(start, "id"),
            "tbl" => self.tables.push(DocxTable::new()),
            "tr" => self.tables.last_mut().into_iter().for_each(|table| table.push(Vec::new())),
            "tc" => {
                let row = self.tables.last_mut().and_then(|table| table.last_mut());
                row.into_iter().for_each(|row| row.push(String::new()));
            }
            property => {
                let Some(paragraph) = self.paragraphs.last_mut() else { return };
                match property {
                    "pStyle" => paragraph.style = value().unwrap_or_default(),
                    "outlineLvl" => paragraph.heading = outline(value()),
                    "numId" => paragraph.list = value(),
                    "ilvl" => {
                        let depth = value().and_then(|depth| depth.parse().ok());
                        paragraph.depth = depth.unwrap_or(0).min(8);
                    }
                    _ => {}
                }
            }
        }
    }

    fn close(&mut self, name: &str) -> Result<(), ReadError> {
        if is_hidden(name) {
            self.hidden = self.hidden.saturating_sub(1);
            return Ok(());
        }
        if self.hidden > 0 {
            return Ok(());
        }
        match name {
            "t" => self.in_text = false,
            "pPr" => self.in_properties = false,
            "p" => {
                if let Some(paragraph) = self.paragraphs.pop() {
                    self.end(paragraph)?;
                }
            }
            "tbl" => {
                let table = self.tables.pop().unwrap_or_default();
                match self.cell() {
                    // A table within a cell becomes that cell's text.
                    Some(cell) => {
                        table.iter().flatten().for_each(|text| add(cell, text));
                    }
                    None => self.out.table(&table)?,
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn cell(&mut self) -> Option<&mut String> {
        self.tables.last_mut()?.last_mut()?.last_mut()
    }

    fn end(&mut self, paragraph: DocxParagraph) -> Result<(), ReadError> {
        let mut text = paragraph.text.as_str();
        if text.trim().is_empty() {
            return Ok(());
        }
        if let Some(cell) = self.cell() {
            add(cell, text);
            return Ok(());
        }
        let noted = self.note.take().map(|id| format!("[^{id}]: {}", text.trim()));
        text = noted.as_deref().unwrap_or(text);
        let style = self.style(&paragraph.style);
        if let Some(level) = paragraph.heading.or(style.heading) {
            return self.out.heading(level, text);
        }
        // List 0 takes a paragraph out of its style's list.
        match paragraph.list.or(style.list).filter(|list| list != "0") {
            Some(list) => {
                let mark = self.mark(list, paragraph.depth);
                self.out.item(paragraph.depth + 1, &mark, text)
            }
            None => self.out.paragraph(text),
        }
    }

    /// Returns a style merged with those it is based on.
    fn style(&self, id: &str) -> DocxStyle {
        let mut found = DocxStyle::default();
        let mut next = self.styles.get(id);
        // More generations than anyone uses; a cycle ends here too.
        for _ in 0..16 {
            let Some(style) = next else { break };
            found.heading = found.heading.or(style.heading);
            found.list = found.list.or_else(|| style.list.clone());
            next = style.based_on.as_ref().and_then(|id| self.styles.get(id));
        }
        found
    }

    fn mark(&mut self, list: String, depth: usize) -> String {
        let numbered = self.numbering.get(&list).and_then(|levels| levels.get(depth));
        if !numbered.copied().unwrap_or(false) {
            return "-".into();
        }
        let numbers = self.numbers.entry(list).or_default();
        numbers.resize(depth + 1, 0);
        numbers[depth] += 1;
        format!("{}.", numbers[depth])
    }
}

fn add(cell: &mut String, text: &str) {
    if !cell.is_empty() {
        cell.push(' ');
    }
    cell.push_str(text.trim());
}

/// Matches elements left out. `Fallback` repeats its neighbour for older programs.
fn is_hidden(name: &str) -> bool {
    matches!(name, "del" | "moveFrom" | "rt" | "Fallback")
}
