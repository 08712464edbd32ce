// What a search finds beyond the words of pages:
// - an error by its message, as it was printed or a part of it: its section, first. `errorMessages` is written by messages.py.
// - of several words, pages that have not all of them (`hk.GRU`); a word counts the more, the fewer pages have it.
document.addEventListener("DOMContentLoaded", () => { // before Sphinx's own, which begins the search
  if (typeof Search === "undefined") return;

  const allWords = Search.performTermsSearch;
  Search.performTermsSearch = (terms, excluded) => {
    if (terms.size < 2) return allWords(terms, excluded);
    const pages = new Map();
    for (const term of terms) {
      const found = allWords(new Set([term]), excluded);
      const weight = Math.log((Search._index.docnames.length + 1) / (found.length || 1));
      for (const result of found) pages.set(result[0], [(pages.get(result[0])?.[0] ?? 0) + weight, result]);
    }
    const most = Math.max(0, ...[...pages.values()].map(([weight]) => weight));
    return [...pages.values()].filter(([weight]) => weight >= most * 0.6)
      .map(([weight, result]) => [...result.slice(0, 4), 10 * weight, ...result.slice(5)]);
  };

  // The share of a message's own text that the query has, in order; all of it where the query is a part of that text.
  const plain = (text) => text.toLowerCase().replace(/\s+/g, " ").trim();
  const likeness = (message, query) => {
    const parts = message.split("…").map(plain).filter((part) => part.length > 2);
    if (query.length > 11 && query.includes(" ") && parts.some((part) => part.includes(query))) return 1;
    let from = 0, found = 0;
    for (const part of parts) {
      const at = query.indexOf(part, from);
      if (at >= 0) { from = at + part.length; found += part.length; }
    }
    return found > 11 ? found / parts.join("").length : 0;
  };
  const perform = Search._performSearch;
  Search._performSearch = (query, ...rest) => {
    const page = Search._index.docnames.indexOf("errors");
    const sections = Object.entries(errorMessages)
      .map(([name, texts]) => [name, Math.max(...texts.map((text) => likeness(text, plain(query))))])
      .filter(([, share]) => share > 0.3).sort((a, b) => a[1] - b[1])
      .map(([name, share]) => ["errors", `Errors > ${name}`, `#${name.toLowerCase()}`, null, 1000 * share, Search._index.filenames[page], "title"]);
    return [...perform(query, ...rest), ...sections]; // the last one is shown first
  };
});
