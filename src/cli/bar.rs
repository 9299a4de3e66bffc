//! Bars on a terminal, and a writer for log lines beside them.

use std::io::{self, IsTerminal, Write};
use std::sync::LazyLock;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

static BARS: LazyLock<MultiProgress> = LazyLock::new(MultiProgress::new);

/// Returns a writer for log lines that does not disturb the bar.
pub(super) fn stderr_beside_bar() -> impl Write {
    struct BarSafeStderr;
    impl Write for BarSafeStderr {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            BARS.suspend(|| io::stderr().write(bytes))
        }
        fn flush(&mut self) -> io::Result<()> {
            io::stderr().flush()
        }
    }
    BarSafeStderr
}

/// Returns a bar of this length, if there is a terminal to draw it on.
pub(super) fn new_bar(length: u64) -> Option<ProgressBar> {
    io::stderr().is_terminal().then(|| {
        let style = ProgressStyle::with_template("{bar:30.cyan/blue} {pos}/{len} {msg}")
            .unwrap_or_else(|_| ProgressStyle::default_bar());
        BARS.add(ProgressBar::new(length).with_style(style))
    })
}
