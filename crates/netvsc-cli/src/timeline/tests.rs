use roxmltree::{Document, Node};

use super::*;

fn heading(verdict: Result<(), String>) -> Heading {
    Heading { title: "a <run>".into(), verdict, figures: vec!["1 & 2".into()] }
}

fn act(micros: u64, nic: usize) -> Event {
    let what = What::HostAction { nic, action: "\"gives\" <a> VF & more\0".into() };
    Event { at: Instant::from_nanos(micros * 1000), what }
}

fn recorded(nics: usize) -> Recorder {
    let mut recorder = Recorder::new(vec![Guid::default(); nics]);
    for nic in 0..nics {
        recorder.event(&Event {
            at: Instant::from_nanos(1_000),
            what: What::Path { nic, path: Path::Synthetic, why: "ready".into() },
        });
        for micros in 0..1000 {
            recorder.event(&act(micros * 10, nic));
            recorder.sent(nic, Instant::from_nanos(micros * 10_000), micros, 2 * micros);
        }
    }
    recorder
}

fn of_class<'a>(tree: &'a Document<'_>, class: &'a str) -> impl Iterator<Item = Node<'a, 'a>> {
    tree.descendants().filter(move |node| {
        node.attribute("class").is_some_and(|all| all.split(' ').any(|one| one == class))
    })
}

fn number(node: &Node<'_, '_>, name: &str) -> f64 {
    node.attribute(name).and_then(|text| text.parse().ok()).expect("a number")
}

#[test]
fn lanes_stay_inside_the_picture_and_their_names_apart_at_1_and_at_64_nics() {
    for nics in [1, 4, 5, 8, 9, 16, 17, 64] {
        let text = recorded(nics).picture(&heading(Ok(())));
        let tree = Document::parse(&text).expect("well-formed");
        assert_eq!(of_class(&tree, "lane").count(), nics);
        let names = of_class(&tree, "lane").filter_map(|lane| {
            lane.children().find(|child| child.has_tag_name("text")).map(|text| number(&text, "y"))
        });
        let names: Vec<f64> = names.collect();
        assert!(names.windows(2).all(|pair| pair[1] - pair[0] >= 14.0), "{nics}: {names:?}");
        let height = number(&tree.root_element(), "height");
        assert!(names.iter().all(|y| *y < height), "{nics}: {names:?} in {height}");
    }
}

#[test]
fn marks_that_are_close_become_one_with_their_number_and_all_their_texts() {
    let text = recorded(1).picture(&heading(Ok(())));
    let tree = Document::parse(&text).expect("well-formed");
    let lane = of_class(&tree, "lane").next().expect("a lane");
    let marks = lane
        .descendants()
        .filter(|node| node.attribute("class").is_some_and(|class| class.starts_with("mark")));
    let titles = marks.filter_map(|mark| mark.first_element_child()?.text().map(str::to_owned));
    let titles: Vec<String> = titles.collect();
    assert!(titles.len() < 100, "{}", titles.len());
    assert_eq!(titles.iter().map(|title| title.lines().count()).sum::<usize>(), 1000);
    assert!(titles[0].contains("\"gives\" <a> VF & more\u{fffd}"), "{}", titles[0]);
}

#[test]
fn a_failure_stands_in_the_head_and_a_long_one_in_full_in_its_tooltip() {
    let why = "<none> ".repeat(100);
    let text = recorded(1).picture(&heading(Err(why.clone())));
    let tree = Document::parse(&text).expect("well-formed");
    let verdict = of_class(&tree, "bad").next().expect("a verdict");
    assert!(
        verdict.text().is_some_and(|text| text.starts_with("FAILED: <none>") && text.len() < 200)
    );
    let title = verdict.first_element_child().and_then(|title| title.text());
    assert_eq!(title, Some(&*format!("FAILED: {why}")));
    assert_eq!(of_class(&tree, "good").count(), 0);
}

#[test]
fn a_run_in_which_nothing_happened_has_a_picture_too() {
    let text = Recorder::new(Vec::new()).picture(&heading(Ok(())));
    assert!(Document::parse(&text).is_ok(), "{text}");
}
