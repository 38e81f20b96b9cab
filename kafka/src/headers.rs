//! Reading record headers, by name without allocation or all of them. The names are in `sluice_proto::headers`.

use std::panic::{AssertUnwindSafe, catch_unwind};

use rdkafka::message::Headers;

/// A header's name is not UTF-8. Anybody may write such a record; it belongs with the dead letters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a header name is not UTF-8")]
pub struct Unreadable;

/// The first value of each of `names`, `None` where the header is missing or null.
///
/// # Errors
/// [`Unreadable`], where rdkafka itself panics: `BorrowedHeaders` unwraps the name of every header that it passes, so one
/// record would stop a lane for ever. The panic ends here, with a message on stderr; so no panic hook may end the process,
/// and the release profile must unwind.
pub fn read<'a, const N: usize>(
    headers: Option<&'a impl Headers>,
    names: [&str; N],
) -> Result<[Option<&'a [u8]>; N], Unreadable> {
    let Some(headers) = headers else { return Ok([None; N]) };
    catch_unwind(AssertUnwindSafe(|| {
        let mut values = [None; N];
        for index in 0..headers.count() {
            let Some(header) = headers.try_get(index) else { break };
            if let Some(place) = names.iter().position(|name| *name == header.key) {
                let value: &mut Option<&'a [u8]> = &mut values[place];
                *value = value.or(header.value);
            }
        }
        values
    }))
    .map_err(|_| Unreadable)
}

/// A copy of every header's name and value; null values are empty.
pub fn all(headers: Option<&impl Headers>) -> Vec<Result<(String, Vec<u8>), Unreadable>> {
    let Some(headers) = headers else { return Vec::new() };
    let read = |index| {
        let header = headers.try_get(index)?;
        Some((header.key.to_owned(), header.value.unwrap_or_default().to_vec()))
    };
    let caught = (0..headers.count()).map(|index| catch_unwind(AssertUnwindSafe(|| read(index))));
    caught
        .filter_map(|read| read.map_err(|_| Unreadable).transpose())
        .collect()
}

/// A header's value as text; `None` where it is missing or not UTF-8.
pub fn text(value: Option<&[u8]>) -> Option<&str> {
    value.and_then(|bytes| std::str::from_utf8(bytes).ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rdkafka::message::{Header, OwnedHeaders};

    #[test]
    fn finds_the_first_value_of_each_name() {
        let headers = OwnedHeaders::new()
            .insert(Header {
                key: "b",
                value: Some("1"),
            })
            .insert(Header {
                key: "a",
                value: Some("2"),
            })
            .insert(Header {
                key: "b",
                value: Some("3"),
            })
            .insert(Header {
                key: "null",
                value: None::<&str>,
            });
        let [a, b, null, missing] = read(Some(&headers), ["a", "b", "null", "missing"]).expect("readable");
        assert_eq!((text(a), text(b), null, missing), (Some("2"), Some("1"), None, None));
        let every = all(Some(&headers)).into_iter().collect::<Result<Vec<_>, _>>();
        let names: Vec<String> = every.expect("readable").into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["b", "a", "b", "null"]);
        assert_eq!(read(None::<&OwnedHeaders>, ["a"]), Ok([None]));
    }

    #[test]
    fn text_refuses_what_is_not_utf8() {
        assert_eq!(text(Some(b"\xff")), None);
    }
}
