//! docs/reliability.md: a section for each command that has something to say, the others' left as they are.

use std::fs;

use anyhow::{Context as _, Result};

use crate::command::root;

/// A section, in the order of the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Section {
    Abuse,
    Power,
    Reboot,
    Clock,
    Link,
    Address,
}

const ORDER: [Section; 6] =
    [Section::Abuse, Section::Power, Section::Reboot, Section::Clock, Section::Link, Section::Address];
const HEAD: &str = "# Reliability\n\nEach section is written by the command that it names; do not edit.\n";

impl Section {
    fn title(self) -> &'static str {
        match self {
            Section::Abuse => "Abuse",
            Section::Power => "Power cuts",
            Section::Reboot => "Restarts of the machine",
            Section::Clock => "Clocks",
            Section::Link => "Links",
            Section::Address => "Addresses",
        }
    }
}

/// Replaces a section of the page.
pub(crate) fn write(section: Section, body: &str) -> Result<()> {
    let path = root().join("docs/reliability.md");
    let before = match fs::read_to_string(&path) {
        Ok(before) => before,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(error).with_context(|| format!("reading {}", path.display())),
    };
    fs::write(&path, with_section(&before, section, body))
        .with_context(|| format!("writing {}", path.display()))
}

/// The page with another body of one section. What no section of ours is, goes.
fn with_section(before: &str, section: Section, body: &str) -> String {
    let bodies = ORDER.map(|one| if one == section { Some(body) } else { body_of(before, one) });
    let mut page = HEAD.to_owned();
    for (one, body) in ORDER.into_iter().zip(bodies) {
        if let Some(body) = body {
            page += &format!("\n## {}\n\n{}\n", one.title(), body.trim());
        }
    }
    page
}

fn body_of(page: &str, section: Section) -> Option<&str> {
    let head = format!("\n## {}\n", section.title());
    let (_, rest) = page.split_once(&head)?;
    Some(rest.split_once("\n## ").map_or(rest, |(body, _)| body))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_section_is_replaced_and_the_others_stay_in_their_order() {
        let page = with_section("", Section::Link, "links\n");
        let page = with_section(&page, Section::Abuse, "abuse\n\n| a |\n");
        let page = with_section(&page, Section::Power, "cuts");
        let page = with_section(&page, Section::Abuse, "abuse again");
        let wanted = "\n## Abuse\n\nabuse again\n\n## Power cuts\n\ncuts\n\n## Links\n\nlinks\n";
        assert_eq!(page, format!("{HEAD}{wanted}"));
    }
}
