from xml.etree import ElementTree

from hfsae.notebook import html_table


def test_a_table_holds_its_cells_and_escapes_them():
    root = ElementTree.fromstring(html_table([["a<b", 1], ["c", None]], header=["x & y", ""], caption="<i>", note="n"))
    assert [cell.text for cell in root.iter("th")] == ["x & y", None]
    assert [cell.text for cell in root.iter("td")] == ["a<b", "1", "c", "None"]
    assert [root[0].text, root[-1].text] == ["<i>", "n"]


def test_without_a_header_the_first_cell_is_the_title_of_its_row():
    root = ElementTree.fromstring(html_table([["k", 3], ["d", 4]]))
    assert [cell.text for cell in root.iter("th")] == ["k", "d"]
    assert [cell.text for cell in root.iter("td")] == ["3", "4"]
