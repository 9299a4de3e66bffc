//! Splits a text into parts of at most so many tokens: before headings, else at paragraphs, else at
//! sentences, else between characters; neighbours may overlap.

use std::ops::Range;

/// Sentence ends in Japanese: the next sentence follows at once.
const FULL_WIDTH_ENDS: [char; 3] = ['。', '！', '？'];
/// Marks that belong to the sentence that they close.
const CLOSING_MARKS: [char; 5] = ['」', '』', '）', '】', '”'];
/// Sentence ends that need white space after them.
const SENTENCE_ENDS: [char; 3] = ['.', '!', '?'];

/// Options of a split.
#[derive(Debug, Clone, Copy)]
pub struct SplitOptions {
    /// The most tokens of a part.
    pub max_tokens: usize,
    /// The most tokens of a part that the next one repeats.
    pub overlap_tokens: usize,
    /// True if lines that begin with `#` are Markdown headings.
    pub headings: bool,
}

/// A part of a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TextPart {
    pub text: String,
    /// Headings above its own text, outermost first, joined by ` > `.
    pub heading: String,
}

/// Smallest unit, never split any further.
struct TextPiece {
    range: Range<usize>,
    tokens: usize,
    /// Level from 1, if it is a heading.
    heading_level: Option<usize>,
}

/// Splits `text`; without overlap, joining the parts gives it back whole. `count` counts tokens.
pub fn split(text: &str, options: SplitOptions, count: &dyn Fn(&str) -> usize) -> Vec<TextPart> {
    let pieces = pieces(text, options, count);
    let mut parts: Vec<TextPart> = Vec::new();
    let (mut start, mut fresh) = (0, 0);
    let mut trail = Vec::new();
    while fresh < pieces.len() {
        let rest = &text[pieces[fresh].range.start..];
        if let (true, Some(last)) = (rest.trim().is_empty(), parts.last_mut()) {
            last.text.push_str(rest);
            break;
        }
        let end = end_of_part(&pieces, start, fresh, options.max_tokens);
        update_trail(&mut trail, &pieces[fresh], text);
        parts.push(TextPart {
            text: text[pieces[start].range.start..pieces[end - 1].range.end].to_owned(),
            heading: trail.iter().map(|(_, title)| *title).collect::<Vec<_>>().join(" > "),
        });
        pieces[fresh + 1..end].iter().for_each(|piece| update_trail(&mut trail, piece, text));
        start = start_of_next(&pieces, fresh, end, options);
        fresh = end;
    }
    parts
}

/// Returns the first piece after the part that begins with `start` and has `fresh` as its first
/// piece of its own.
fn end_of_part(pieces: &[TextPiece], start: usize, fresh: usize, max_tokens: usize) -> usize {
    let mut tokens = pieces[start..=fresh].iter().map(|piece| piece.tokens).sum::<usize>();
    let mut end = fresh + 1;
    let mut section_start = None;
    while end < pieces.len() && tokens + pieces[end].tokens <= max_tokens {
        // A part that is half full may as well end where a section does.
        if pieces[end].heading_level.is_some() && tokens >= max_tokens / 2 {
            section_start = Some(end);
        }
        tokens += pieces[end].tokens;
        end += 1;
    }
    if end == pieces.len() || pieces[end].heading_level.is_some() {
        return end;
    }
    // A heading stays with its text.
    let headed = (fresh + 1..=end).rev().find(|&at| pieces[at - 1].heading_level.is_none());
    section_start.or(headed).unwrap_or(end)
}

/// Returns the start of the part after `end`: as far back as the overlap allows and the next piece
/// leaves room. A new section repeats nothing.
fn start_of_next(pieces: &[TextPiece], fresh: usize, end: usize, options: SplitOptions) -> usize {
    let Some(next) = pieces.get(end).filter(|next| next.heading_level.is_none()) else {
        return end;
    };
    let room = options.overlap_tokens.min(options.max_tokens.saturating_sub(next.tokens));
    let mut start = end;
    let mut repeated = 0;
    while start > fresh && repeated + pieces[start - 1].tokens <= room {
        start -= 1;
        repeated += pieces[start].tokens;
    }
    start
}

/// Updates the trail of headings when a piece is passed.
fn update_trail<'a>(trail: &mut Vec<(usize, &'a str)>, piece: &TextPiece, text: &'a str) {
    if let Some(level) = piece.heading_level {
        trail.retain(|(outer, _)| *outer < level);
        let title = text[piece.range.clone()].lines().next().unwrap_or_default();
        trail.push((level, title.trim_start_matches('#').trim()));
    }
}

/// Returns the largest pieces that need no border within.
fn pieces(text: &str, options: SplitOptions, count: &dyn Fn(&str) -> usize) -> Vec<TextPiece> {
    let mut pieces = Vec::new();
    let mut at = 0;
    let mut push = |piece: &str, tokens, level| {
        pieces.push(TextPiece { range: at..at + piece.len(), tokens, heading_level: level });
        at += piece.len();
    };
    for (block, level) in blocks(text, options.headings) {
        let tokens = count(block);
        if tokens <= options.max_tokens {
            push(block, tokens, level);
            continue;
        }
        for sentence in sentences(block) {
            halve(sentence, options.max_tokens, count, &mut |piece, tokens| {
                push(piece, tokens, None)
            });
        }
    }
    pieces
}

/// Returns paragraphs, and headings with their levels, each with the empty lines after it.
fn blocks(text: &str, headings: bool) -> Vec<(&str, Option<usize>)> {
    let mut blocks = Vec::new();
    let (mut start, mut at) = (0, 0);
    let mut level = None;
    let (mut fenced, mut blank) = (false, false);
    for line in text.split_inclusive('\n') {
        let empty = line.trim().is_empty();
        let heads = heading(line).filter(|_| headings && !fenced);
        let border = heads.is_some() || (level.is_some() || blank) && !empty;
        if border && at > start {
            blocks.push((&text[start..at], level));
            start = at;
            level = None;
        }
        level = heads.or(level);
        blank = empty;
        fenced ^= line.trim_start().starts_with("```");
        at += line.len();
    }
    if at > start {
        blocks.push((&text[start..], level));
    }
    blocks
}

fn heading(line: &str) -> Option<usize> {
    let level = line.bytes().take_while(|byte| *byte == b'#').count();
    ((1..=6).contains(&level) && line[level..].starts_with([' ', '\t'])).then_some(level)
}

fn sentences(text: &str) -> Vec<&str> {
    let mut sentences = Vec::new();
    let mut start = 0;
    let mut ended = false;
    let mut before = ' ';
    for (at, c) in text.char_indices() {
        let full_width = FULL_WIDTH_ENDS.contains(&c);
        let closes = ended && CLOSING_MARKS.contains(&c);
        if ended && !full_width && !closes {
            sentences.push(&text[start..at]);
            start = at;
        }
        ended = full_width
            || closes
            || c == '\n'
            || c.is_whitespace() && SENTENCE_ENDS.contains(&before);
        before = c;
    }
    sentences.push(&text[start..]);
    sentences
}

/// Halves a piece between characters until all fit.
fn halve(
    piece: &str,
    max_tokens: usize,
    count: &dyn Fn(&str) -> usize,
    push: &mut dyn FnMut(&str, usize),
) {
    let tokens = count(piece);
    let middle = piece.floor_char_boundary(piece.len() / 2);
    if middle == 0 || tokens <= max_tokens {
        return push(piece, tokens);
    }
    let (left, right) = piece.split_at(middle);
    halve(left, max_tokens, count, push);
    halve(right, max_tokens, count, push);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn letters(text: &str) -> usize {
        text.chars().count()
    }

    fn cut(text: &str, tokens: usize, overlap: usize) -> Vec<TextPart> {
        split(
            text,
            SplitOptions { max_tokens: tokens, overlap_tokens: overlap, headings: true },
            &letters,
        )
    }

    fn texts(parts: &[TextPart]) -> Vec<&str> {
        parts.iter().map(|part| part.text.as_str()).collect()
    }

    #[test]
    fn parts_end_where_sentences_do_and_lose_nothing() {
        let text =
            "一つ目の文。「二つ目の文です。」三つ目の文！\n\nVersion 1.2 is out. And more.\n";
        let parts = cut(text, 20, 0);
        assert_eq!(texts(&parts).concat(), text);
        assert!(parts.iter().all(|part| letters(&part.text) <= 20), "{parts:?}");
        assert_eq!(texts(&parts)[0], "一つ目の文。「二つ目の文です。」");
        assert!(texts(&parts).contains(&"Version 1.2 is out. "), "{parts:?}");
    }

    #[test]
    fn a_sentence_without_an_end_is_cut_between_characters() {
        let text = "あ".repeat(100);
        let parts = cut(&text, 30, 0);
        assert_eq!(texts(&parts).concat(), text);
        assert!(parts.iter().all(|part| letters(&part.text) <= 30));
    }

    #[test]
    fn neighbours_share_whole_sentences() {
        let parts = cut("One two. Three. Four five. Six.", 20, 8);
        assert_eq!(texts(&parts), ["One two. Three. ", "Three. Four five. ", "Six."]);
        let parts = cut("One two. Three. Four five. Six.", 20, 0);
        assert_eq!(texts(&parts), ["One two. Three. ", "Four five. Six."]);
    }

    #[test]
    fn a_section_begins_a_part_and_heads_what_follows() {
        let text =
            "# A\n\nfirst words\n\n## B\n\nsecond words\n\n```\n# no heading\n```\n\n# C\n\nlast\n";
        let parts = cut(text, 36, 10);
        assert_eq!(
            texts(&parts),
            [
                "# A\n\nfirst words\n\n",
                "## B\n\nsecond words\n\n",
                "```\n# no heading\n```\n\n# C\n\nlast\n"
            ]
        );
        let headings: Vec<_> = parts.iter().map(|part| part.heading.as_str()).collect();
        assert_eq!(headings, ["A", "A > B", "A > B"]);
    }

    #[test]
    fn a_text_without_headings_keeps_its_hashes() {
        let text = "# a comment\n# another\n";
        let parts = split(
            text,
            SplitOptions { max_tokens: 90, overlap_tokens: 0, headings: false },
            &letters,
        );
        assert_eq!(parts, [TextPart { text: text.into(), heading: String::new() }]);
        assert_eq!(cut(" \n", 9, 0).len(), 1, "what is not empty stays");
    }
}
